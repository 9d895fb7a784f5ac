"""The only room with sockets, files, threads and clocks: loopback, uplinks, pcap."""
