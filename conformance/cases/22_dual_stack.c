// shape: self
// A listener on :: takes IPv4 as v4-mapped addresses, unless V6ONLY; the option is fixed once bound.
#include "case.h"

static void show(const char *what, const union address *a) {
    char text[64];
    if (a->sa.sa_family == AF_INET6)
        inet_ntop(AF_INET6, &a->in6.sin6_addr, text, sizeof text);
    else
        inet_ntop(AF_INET, &a->in.sin_addr, text, sizeof text);
    T("%s: %s %s", what, family_name(a->sa.sa_family), text);
}

int main(void) {
    case_start();
    for (int only = 0; only < 2; only++) {
        int listener = tcp_socket(AF_INET6);
        T("default %d", get_int(listener, IPPROTO_IPV6, IPV6_V6ONLY));
        MUST(set_int(listener, IPPROTO_IPV6, IPV6_V6ONLY, only));
        union address a = any_address(AF_INET6, private_port() + only);
        MUST(bind(listener, &a.sa, sizeof a.in6));
        MUST(listen(listener, 8));
        R("set it once bound", set_int(listener, IPPROTO_IPV6, IPV6_V6ONLY, !only));
        socklen_t length = sizeof a;
        MUST(getsockname(listener, &a.sa, &length));
        show("bound", &a);
        for (int i = 0; i < 2; i++) {
            int fd = tcp_socket(FAMILIES[i]);
            T("-- %s to ::, V6ONLY %d", family_name(FAMILIES[i]), only);
            if (R("connect", connect_fd(fd, FAMILIES[i], port_of(listener))) < 0) continue;
            length = sizeof a;
            int taken = MUST(accept(listener, &a.sa, &length));
            show("peer", &a);
            length = sizeof a;
            MUST(getsockname(taken, &a.sa, &length));
            show("own", &a);
            T("domain %s", family_name(get_int(taken, SOL_SOCKET, SO_DOMAIN)));
            send_text(fd, "dual");
            expect_text("server", taken, 4);
            send_text(taken, "stack");
            expect_text("client", fd, 5);
            close(fd);
            close(taken);
        }
        int four = tcp_socket(AF_INET);
        union address b = any_address(AF_INET, port_of(listener));
        R("0.0.0.0 on the same port", bind(four, &b.sa, sizeof b.in));
        close(four);
        close(listener);
    }
    return 0;
}
