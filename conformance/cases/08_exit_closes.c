// shape: pair
// A process that exits, or is killed, with unsent data behind it: all that send took is delivered, then EOF.
#include "case.h"

#define BYTES 200000

static void server_role(int listener) {
    for (int i = 0; i < 2; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        msleep(100); // the sender is gone before anything is read
        drain("server", fd);
        close(fd);
    }
}

static void client_role(int port) {
    for (int i = 0; i < 2; i++) {
        pid_t child = must_fork();
        if (child == 0) {
            static char block[BYTES];
            fill(block, sizeof block, 1 + i);
            int fd = connect_to(AF_INET, port);
            MUST(send_all(fd, block, sizeof block));
            if (i) raise(SIGKILL);
            exit(0);
        }
        reap("client", child);
    }
}

PAIR_MAIN(AF_INET)
