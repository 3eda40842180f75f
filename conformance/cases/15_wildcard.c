// shape: server
// A server on 0.0.0.0, as most are configured; the accepted socket's own address is the one that was asked for.
#include "case.h"

static void client_role(int port) {
    for (int i = 1; i <= 2; i++) {
        union address a = loopback(AF_INET, port);
        a.in.sin_addr.s_addr = htonl(0x7f000000 + i);
        int fd = tcp_socket(AF_INET);
        R("connect", connect(fd, &a.sa, sizeof a.in));
        drain("client", fd);
        close(fd);
    }
}

static void server_role(int unused) {
    close(unused);
    int listener = tcp_socket(AF_INET);
    union address a = any_address(AF_INET, 0);
    MUST(bind(listener, &a.sa, sizeof a.in));
    MUST(listen(listener, 8));
    tell_number("wildcard", port_of(listener));
    for (int i = 1; i <= 2; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        socklen_t length = sizeof a;
        MUST(getsockname(fd, &a.sa, &length));
        T("asked for 127.0.0.%d: %d", i, a.in.sin_addr.s_addr == htonl(0x7f000000 + i));
        close(fd);
    }
}

int main(int argc, char **argv) {
    if (is_server(argc, argv))
        server_role(make_listener(AF_INET));
    else
        client_role(await_number("wildcard"));
    return 0;
}
