// What the cases about datagram sockets share.
#ifndef UDP_H
#define UDP_H
#include "case.h"

static inline int udp_socket(int family) { return MUST(socket(family, SOCK_DGRAM, 0)); }

// A socket bound to a free port of loopback.
static inline int udp_bound(int family) {
    int fd = udp_socket(family);
    MUST(bind_to(fd, family, 0));
    return fd;
}

static inline ssize_t udp_to(int fd, int family, int port, const void *from, size_t length) {
    union address a = loopback(family, port);
    return sendto(fd, from, length, 0, &a.sa, address_length(family));
}

static inline int udp_connect(int fd, int family, int port) {
    union address a = loopback(family, port);
    return connect(fd, &a.sa, address_length(family));
}

// Two sockets, each connected to the other.
static inline void udp_pair(int family, int ends[2]) {
    ends[0] = udp_bound(family);
    ends[1] = udp_bound(family);
    MUST(udp_connect(ends[0], family, port_of(ends[1])));
    MUST(udp_connect(ends[1], family, port_of(ends[0])));
}

// Receives one datagram, waiting for it, and says what it was.
static inline void udp_expect(const char *what, int fd) {
    char bytes[128] = "";
    MUST(wait_mask(fd, POLLIN, POLLIN));
    ssize_t n = recv(fd, bytes, sizeof bytes - 1, 0);
    if (n < 0)
        T("%s: %s", what, ename(errno));
    else
        T("%s: %zd '%.*s'", what, n, (int)n, bytes);
}
#endif
