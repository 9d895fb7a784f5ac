/* Holds a UDP socket on port argv[1] that takes ESP in UDP (RFC 3948), for as long as it lives.
   A bypass policy on that socket, as IKE daemons set: an inbound policy of the whole host would drop the outer UDP. */
#include <arpa/inet.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { UDP_ENCAP_OPTION = 100, ESP_IN_UDP = 2, IP_XFRM_POLICY_OPTION = 17 };

int main(int count, char **words) {
    int type = ESP_IN_UDP, fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? atoi(words[1]) : 4500)};
    if (fd < 0 || bind(fd, (void *)&address, sizeof address) ||
        setsockopt(fd, IPPROTO_UDP, UDP_ENCAP_OPTION, &type, sizeof type)) {
        perror("udpencap");
        return 1;
    }
    for (int direction = XFRM_POLICY_IN; direction <= XFRM_POLICY_OUT; direction++) {
        struct xfrm_userpolicy_info bypass = {
            .action = XFRM_POLICY_ALLOW, .sel.family = AF_INET, .dir = (unsigned char)direction};
        if (setsockopt(fd, IPPROTO_IP, IP_XFRM_POLICY_OPTION, &bypass, sizeof bypass)) {
            perror("udpencap: IP_XFRM_POLICY");
            return 1;
        }
    }
    for (;;)
        pause();
}
