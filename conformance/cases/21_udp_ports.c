// shape: self
// A port has one owner, unless all say that they share; TCP's ports are others.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int a, b = udp_socket(family), tcp, port, tries = 0;
        // A port that nobody has, neither of UDP nor of TCP.
        for (;;) {
            a = udp_bound(family), tcp = tcp_socket(family), port = port_of(a);
            if (bind_to(tcp, family, port) == 0 || ++tries == 50) break;
            close(a), close(tcp);
        }
        T("TCP's has another owner: %d", tries < 50);
        R("the same port", bind_to(b, family, port));
        R("is not bound by that", port_of(b));
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
