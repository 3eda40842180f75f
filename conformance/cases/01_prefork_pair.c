// shape: pair
// Four forked workers as one program, forty connections from another, eight of them open at once.
#include "case.h"

static void server_role(int listener) {
    pid_t workers[4];
    for (int i = 0; i < 4; i++)
        if ((workers[i] = must_fork()) == 0)
            for (;;) {
                int fd = MUST(accept(listener, NULL, NULL));
                char text[64];
                ssize_t n = recv(fd, text, sizeof text, 0);
                if (n > 0) MUST(send(fd, text, n, 0));
                close(fd);
            }
    close(listener);
    await("done");
    for (int i = 0; i < 4; i++) {
        kill(workers[i], SIGKILL);
        reap("worker", workers[i]);
    }
}

static void client_role(int port) {
    for (int round = 0; round < 5; round++) {
        int fds[8];
        for (int i = 0; i < 8; i++) fds[i] = connect_to(AF_INET, port);
        for (int i = 7; i >= 0; i--) send_text(fds[i], "request");
        for (int i = 0; i < 8; i++) {
            expect_text("client", fds[i], 7);
            drain("client", fds[i]);
            close(fds[i]);
        }
    }
    tell("done");
}

PAIR_MAIN(AF_INET)
