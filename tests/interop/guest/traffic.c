/* Traffic whose every octet the receiver can foretell.

     traffic serve PORT                     answer TCP (send, fetch) and count UDP (stream), until killed
     traffic send HOST PORT OCTETS          send that many octets over TCP; prints "ok OCTETS in SECONDS s"
     traffic fetch HOST PORT OCTETS         the other direction
     traffic stream HOST PORT COUNT SIZE PAUSE_US    numbered UDP datagrams of SIZE octets
     traffic report HOST PORT               what the server saw of the streams: "got G missing M again A late L bad B"

   Status 0: everything arrived as it was sent. */
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, MOST = 1 << 22 };
enum command { SEND = 1, FETCH = 2, REPORT = 3 };
struct request { uint64_t command, octets, seed; };

static uint64_t next(uint64_t *state) { /* xorshift64 */
    uint64_t x = *state;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return *state = x;
}

static void fill(uint64_t *state, uint64_t *words, size_t octets) {
    for (size_t i = 0; i < octets / 8; i++)
        words[i] = next(state);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int read_all(int fd, void *data, size_t octets) {
    for (size_t at = 0; at < octets;) {
        ssize_t got = read(fd, (char *)data + at, octets - at);
        if (got <= 0)
            return 0;
        at += (size_t)got;
    }
    return 1;
}

static int write_all(int fd, const void *data, size_t octets) {
    for (size_t at = 0; at < octets;) {
        ssize_t put = send(fd, (const char *)data + at, octets - at, MSG_NOSIGNAL);
        if (put <= 0)
            return 0;
        at += (size_t)put;
    }
    return 1;
}

static int give(int fd, uint64_t octets, uint64_t seed) { /* octets is a multiple of 8 */
    static uint64_t words[CHUNK / 8];
    for (uint64_t left = octets; left;) {
        size_t part = left < CHUNK ? (size_t)left : CHUNK;
        fill(&seed, words, part);
        if (!write_all(fd, words, part))
            return 0;
        left -= part;
    }
    return 1;
}

static uint64_t take(int fd, uint64_t octets, uint64_t seed) { /* how many came right before the first fault */
    static uint64_t words[CHUNK / 8], wanted[CHUNK / 8];
    for (uint64_t done = 0; done < octets;) {
        size_t part = octets - done < CHUNK ? (size_t)(octets - done) : CHUNK;
        fill(&seed, wanted, part);
        if (!read_all(fd, words, part) || memcmp(words, wanted, part))
            return done;
        done += part;
    }
    return octets;
}

/* Numbered datagrams: number, then the generator's words seeded with it. */
static unsigned char seen[MOST / 8];
static uint64_t got, again, late, bad, highest;

static void datagram(const uint64_t *words, size_t octets) {
    uint64_t number = words[0], state = number + 1;
    if (octets < 16 || octets % 8 || number >= MOST) {
        bad++;
        return;
    }
    for (size_t i = 1; i < octets / 8; i++)
        if (words[i] != next(&state)) {
            bad++;
            return;
        }
    if (seen[number / 8] >> number % 8 & 1) {
        again++;
        return;
    }
    seen[number / 8] |= (unsigned char)(1 << number % 8);
    got++;
    late += got > 1 && number < highest;
    highest = number > highest ? number : highest;
}

static void answer(int fd) {
    struct request request;
    char line[160] = "";
    if (!read_all(fd, &request, sizeof request))
        return;
    if (request.command == SEND) {
        uint64_t right = take(fd, request.octets, request.seed);
        snprintf(line, sizeof line, right == request.octets ? "ok" : "bad at octet %llu", (unsigned long long)right);
    } else if (request.command == FETCH) {
        give(fd, request.octets, request.seed);
    } else {
        uint64_t missing = got ? highest + 1 - got : 0;
        snprintf(line, sizeof line, "got %llu missing %llu again %llu late %llu bad %llu", (unsigned long long)got,
                 (unsigned long long)missing, (unsigned long long)again, (unsigned long long)late,
                 (unsigned long long)bad);
        memset(seen, 0, sizeof seen);
        got = again = late = bad = highest = 0;
    }
    write_all(fd, line, strlen(line));
}

static int open_server(int type, int port) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int fd = socket(AF_INET6, type, 0), yes = 1, buffer = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (type == SOCK_DGRAM)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    if (bind(fd, (void *)&address, sizeof address) || (type == SOCK_STREAM && listen(fd, 8)))
        die("traffic serve");
    return fd;
}

static int serve(int port) {
    static uint64_t words[8192];
    struct pollfd fds[2] = {{.fd = open_server(SOCK_STREAM, port), .events = POLLIN},
                            {.fd = open_server(SOCK_DGRAM, port), .events = POLLIN}};
    while (poll(fds, 2, -1) > 0) {
        ssize_t octets;
        /* Datagrams first: a report tells of all that came before it. */
        while ((octets = recv(fds[1].fd, words, sizeof words, MSG_DONTWAIT)) >= 0)
            datagram(words, (size_t)octets);
        if (fds[0].revents & POLLIN) {
            int fd = accept(fds[0].fd, NULL, NULL);
            answer(fd);
            close(fd);
        }
    }
    return 2;
}

static int reach(int type, const char *host, const char *port) {
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port))};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = six.sin6_port};
    int is_four = inet_pton(AF_INET, host, &four.sin_addr) == 1;
    if (!is_four && inet_pton(AF_INET6, host, &six.sin6_addr) != 1) {
        fprintf(stderr, "traffic: %s is no IP address\n", host);
        exit(2);
    }
    int fd = socket(is_four ? AF_INET : AF_INET6, type, 0);
    if (fd < 0 || (is_four ? connect(fd, (void *)&four, sizeof four) : connect(fd, (void *)&six, sizeof six)))
        die("traffic: connect");
    return fd;
}

static int transfer(enum command command, char **words) {
    struct request request = {command, words[4] ? strtoull(words[4], NULL, 0) & ~7ull : 0, (uint64_t)getpid() | 1ull << 32};
    int fd = reach(SOCK_STREAM, words[2], words[3]);
    char line[160] = "ok";
    double begin = now();
    if (!write_all(fd, &request, sizeof request) || (command == SEND && !give(fd, request.octets, request.seed)))
        die("traffic: send");
    if (command == FETCH) {
        uint64_t right = take(fd, request.octets, request.seed);
        if (right != request.octets)
            snprintf(line, sizeof line, "bad at octet %llu", (unsigned long long)right);
    } else {
        size_t at = 0;
        ssize_t part;
        memset(line, 0, sizeof line);
        while (at < sizeof line - 1 && (part = read(fd, line + at, sizeof line - 1 - at)) > 0)
            at += (size_t)part;
        if (command == REPORT) {
            puts(line);
            return !strstr(line, "missing 0 again 0 late 0 bad 0");
        }
    }
    printf("%s %llu in %.2f s\n", line, (unsigned long long)request.octets, now() - begin);
    return strcmp(line, "ok") != 0;
}

static int stream(char **words) {
    static uint64_t data[8192];
    uint64_t count = strtoull(words[4], NULL, 0);
    size_t octets = strtoull(words[5], NULL, 0) & ~7ull;
    long pause_us = atol(words[6]);
    int fd = reach(SOCK_DGRAM, words[2], words[3]), buffer = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    for (uint64_t number = 0; number < count; number++) {
        uint64_t state = number + 1;
        data[0] = number;
        fill(&state, data + 1, octets - 8);
        send(fd, data, octets, 0); /* a refusal counts as a loss */
        if (pause_us)
            usleep((useconds_t)pause_us);
    }
    printf("sent %llu\n", (unsigned long long)count);
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "serve"))
        return serve(atoi(words[2]));
    if (count == 5 && !strcmp(words[1], "send"))
        return transfer(SEND, words);
    if (count == 5 && !strcmp(words[1], "fetch"))
        return transfer(FETCH, words);
    if (count == 4 && !strcmp(words[1], "report"))
        return transfer(REPORT, words);
    if (count == 7 && !strcmp(words[1], "stream"))
        return stream(words);
    fputs("usage: see the head of traffic.c\n", stderr);
    return 2;
}
