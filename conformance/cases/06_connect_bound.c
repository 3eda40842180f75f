// shape: self
// A client that binds first: to port 0, to an address only, to a port of its own; the server sees that port.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family);
        for (int i = 0; i < 3; i++) {
            int fd = tcp_socket(family), own = i == 1 ? private_port() + (family == AF_INET6) : 0;
            if (i == 2) MUST(set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1));
            if (i == 1) MUST(set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1));
            R("bind", bind_to(fd, family, own));
            int before = port_of(fd);
            T("port known at once: %d", before != 0);
            R("connect", connect_fd(fd, family, port_of(listener)));
            union address a;
            socklen_t length = sizeof a;
            int taken = MUST(accept(listener, &a.sa, &length));
            T("the server sees it: %d, unchanged: %d", port_in(&a) == port_of(fd), before == 0 || before == port_of(fd));
            close(fd);
            drain("server", taken);
            close(taken);
        }
        close(listener);
    }
    return 0;
}
