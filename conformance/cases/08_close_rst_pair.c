// shape: pair
// A server that closes without reading, one that resets, one that ends properly: what the other program sees.
#include "case.h"

static void server_role(int listener) {
    for (int i = 0; i < 4; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        wait_bytes(fd, 5);
        if (i == 0) close(fd);
        if (i == 1) close_rst(fd);
        if (i == 2) {
            drain("server", fd);
            close(fd);
        }
        if (i == 3) { // ends as a process, unread data inside
            pid_t child = must_fork();
            if (child == 0) _exit(0);
            close(fd);
            reap("child", child);
        }
    }
}

static void client_role(int port) {
    for (int i = 0; i < 4; i++) {
        int fd = connect_to(AF_INET6, port);
        send_text(fd, "hello");
        if (i == 2) MUST(shutdown(fd, SHUT_WR));
        T("mask %s", mask(wait_mask(fd, ALL_EVENTS, POLLHUP)));
        drain("client", fd);
        drain("client", fd);
        R("send", send(fd, "x", 1, MSG_NOSIGNAL));
        close(fd);
    }
}

PAIR_MAIN(AF_INET6)
