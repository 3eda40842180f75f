// shape: pair
// The simplest case of two programs: a client asks, a server answers, each sees the other's end.
#include "case.h"

static void server_role(int listener) {
    for (int i = 0; i < 3; i++) {
        union address a;
        socklen_t length = sizeof a;
        int fd = RF("accept", accept(listener, &a.sa, &length));
        T("from %s, the port is getpeername's: %d", family_name(a.sa.sa_family), port_in(&a) == peer_port_of(fd));
        expect_text("server", fd, 4);
        send_text(fd, "pong");
        drain("server", fd);
        close(fd);
    }
}

static void client_role(int port) {
    for (int i = 0; i < 3; i++) {
        int fd = connect_to(AF_INET, port);
        T("connected to that port: %d", peer_port_of(fd) == port);
        send_text(fd, "ping");
        expect_text("client", fd, 4);
        close(fd);
    }
}

PAIR_MAIN(AF_INET)
