// shape: client
// A client's event loop, edge-triggered from before connect: OUT once it is through, then data and EOF.
#include "case.h"

static void server_role(int listener) {
    for (int i = 0; i < 3; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        expect_text("server", fd, 3);
        send_text(fd, "answer");
        await(i == 0 ? "read-0" : i == 1 ? "read-1" : "read-2");
        close(fd);
    }
}

static void client_role(int port) {
    for (int i = 0; i < 3; i++) {
        int ep = MUST(epoll_create1(0)), fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        char text[16] = {0};
        MUST(connect_fd(fd, AF_INET, port) == 0 || errno == EINPROGRESS ? 0 : -1);
        EP_ADD(ep, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
        ep_show("connected", ep, WAIT_MS);
        EP_QUIET("once", ep);
        T("SO_ERROR %s", so_error(fd));
        R("recv", recv(fd, text, sizeof text, 0));
        send_text(fd, "ask");
        // Linux may report an edge more than there was (epoll(7)); what came by now is one report.
        wait_mask(fd, POLLIN, POLLIN);
        usleep(20000);
        ep_show("answered", ep, WAIT_MS);
        T("bytes %zd %s", recv_all(fd, text, 6), text);
        EP_QUIET("nothing", ep);
        tell(i == 0 ? "read-0" : i == 1 ? "read-1" : "read-2");
        ep_show("eof", ep, WAIT_MS);
        R("recv", recv(fd, text, sizeof text, 0));
        close(fd);
        close(ep);
    }
}

PAIR_MAIN(AF_INET)
