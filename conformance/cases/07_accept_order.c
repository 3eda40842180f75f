// shape: pair
// Connections come out of accept in the order in which they were made.
#include "case.h"

static void server_role(int listener) {
    await("all-connected");
    for (int i = 0; i < 10; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        expect_text("server", fd, 1);
        close(fd);
    }
}

static void client_role(int port) {
    int fds[10];
    for (int i = 0; i < 10; i++) {
        fds[i] = connect_to(AF_INET, port);
        char c = 'a' + i;
        MUST(send(fds[i], &c, 1, 0));
    }
    tell("all-connected");
    for (int i = 0; i < 10; i++) drain("client", fds[i]);
}

PAIR_MAIN(AF_INET)
