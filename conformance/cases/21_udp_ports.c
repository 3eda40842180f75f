// shape: self
// A port has one owner, unless all say that they share; TCP's ports are others.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int a = udp_bound(family), b = udp_socket(family), port = port_of(a);
        R("the same port", bind_to(b, family, port));
        R("is not bound by that", port_of(b));
        int tcp = tcp_socket(family);
        R("TCP's", bind_to(tcp, family, port));
        close(a);
        R("free again", bind_to(b, family, port));
        close(b);
        a = udp_socket(family), b = udp_socket(family);
        MUST(set_int(a, SOL_SOCKET, SO_REUSEADDR, 1));
        R("REUSEADDR", bind_to(a, family, port));
        R("one alone", bind_to(b, family, port));
        MUST(set_int(b, SOL_SOCKET, SO_REUSEADDR, 1));
        R("both", bind_to(b, family, port));
        close(a), close(b), close(tcp);
        a = udp_socket(family), b = udp_socket(family);
        MUST(set_int(a, SOL_SOCKET, SO_REUSEPORT, 1));
        MUST(set_int(b, SOL_SOCKET, SO_REUSEPORT, 1));
        R("REUSEPORT", bind_to(a, family, 0));
        R("joins", bind_to(b, family, port_of(a)));
        int heard = 0;
        for (int i = 0; i < 32; i++) {
            int c = udp_socket(family);
            MUST(udp_to(c, family, port_of(a), "x", 1));
            struct pollfd p[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
            MUST(poll(p, 2, WAIT_MS));
            int who = p[0].revents ? 0 : 1;
            MUST(recv(p[who].fd, &(char){0}, 1, 0));
            heard |= 1 << who;
            close(c);
        }
        T("both are used: %d", heard == 3);
        close(a), close(b);
    }
    return 0;
}
