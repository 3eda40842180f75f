// shape: pair
// A client connects, forks and exits; its child finishes the conversation. No FIN in between.
#include "case.h"

static void server_role(int listener) {
    int fd = MUST(accept(listener, NULL, NULL));
    expect_text("server", fd, 6);
    await("parent-gone");
    T("after the parent's exit: %s", mask(poll1(fd, POLLIN | POLLRDHUP, QUIET_MS)));
    tell("go-on");
    drain("server", fd);
}

static void client_role(int port) {
    int fd = connect_to(AF_INET, port);
    pid_t middle = must_fork();
    if (middle == 0) {
        if (must_fork() == 0) {
            await("go-on");
            send_text(fd, "child");
            _exit(0);
        }
        send_text(fd, "parent");
        _exit(0);
    }
    close(fd);
    reap("middle", middle);
    tell("parent-gone");
    await("go-on");
    T("client ends");
}

PAIR_MAIN(AF_INET)
