// shape: self
// connect names the peer and keeps others out; again, elsewhere; AF_UNSPEC undoes it, and gives a port back that nobody asked for.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int a = udp_bound(family), b = udp_bound(family), fd = udp_socket(family);
        R("connect", udp_connect(fd, family, port_of(a)));
        int port = port_of(fd);
        T("port %d, peer %d", port != 0, peer_port_of(fd) == port_of(a));
        MUST(udp_to(b, family, port, "stranger", 8));
        T("a stranger is not heard: %s", mask(poll1(fd, POLLIN, QUIET_MS)));
        MUST(udp_to(a, family, port, "friend", 6));
        udp_expect("peer", fd);
        R("connect again", udp_connect(fd, family, port_of(b)));
        T("the same port: %d, the other peer: %d", port_of(fd) == port, peer_port_of(fd) == port_of(b));
        R("send", send(fd, "to b", 4, 0));
        udp_expect("b", b);
        union address none = {.sa.sa_family = AF_UNSPEC};
        R("disconnect", connect(fd, &none.sa, sizeof none.sa));
        T("port is 0: %d", port_of(fd) == 0);
        socklen_t length = sizeof none;
        R("getpeername", getpeername(fd, &none.sa, &length));
        R("send", send(fd, "x", 1, 0));
        R("sendto", udp_to(fd, family, port_of(a), "again", 5));
        T("has a port again: %d", port_of(fd) != 0);
        udp_expect("a", a);
        none.sa.sa_family = AF_UNSPEC;
        MUST(udp_connect(a, family, port_of(b)));
        port = port_of(a);
        R("disconnect a bound one", connect(a, &none.sa, sizeof none.sa));
        T("keeps its port: %d", port_of(a) == port);
        close(a);
        close(b);
        close(fd);
    }
    return 0;
}
