// shape: pair
// A client sends a body and shuts its side; the server answers only then, at length; as HTTP/1.0 and nc do.
#include "case.h"

static void server_role(int listener) {
    for (int i = 0; i < 2; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        static char block[500000];
        drain("request", fd);
        fill(block, sizeof block, 9 + i);
        R("answer", send_all(fd, block, sizeof block));
        MUST(shutdown(fd, SHUT_WR));
        char c;
        R("recv", recv(fd, &c, 1, 0));
        close(fd);
    }
}

static void client_role(int port) {
    for (int i = 0; i < 2; i++) {
        int fd = connect_to(AF_INET, port);
        static char block[300000];
        fill(block, sizeof block, 3 + i);
        R("request", send_all(fd, block, sizeof block));
        MUST(shutdown(fd, SHUT_WR));
        drain("answer", fd);
        close(fd);
    }
}

PAIR_MAIN(AF_INET)
