// shape: self
// What a connection is crosses exec: unread and partly read data, O_NONBLOCK, SHUT_WR, options, an epoll that is made anew.
#include "case.h"

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) {
        int fd = atoi(argv[1]);
        T("nonblock %d nodelay %d keepalive %d", !!(fcntl(fd, F_GETFL) & O_NONBLOCK),
          get_int(fd, IPPROTO_TCP, TCP_NODELAY), get_int(fd, SOL_SOCKET, SO_KEEPALIVE));
        int ep = MUST(epoll_create1(0));
        EP_ADD(ep, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, 1);
        ep_show("ready at once", ep, WAIT_MS);
        expect_text("rest", fd, 6);
        char c;
        R("recv", recv(fd, &c, 1, 0));
        R("send after SHUT_WR", send(fd, "x", 1, MSG_NOSIGNAL));
        T("ready");
        tell("ready");
        ep_show("eof", ep, WAIT_MS);
        R("recv", recv(fd, &c, 1, 0));
        return 0;
    }
    int ends[2];
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "whole-of-it");
    expect_text("before", ends[1], 5);
    nonblock(ends[1]);
    MUST(set_int(ends[1], IPPROTO_TCP, TCP_NODELAY, 1));
    MUST(set_int(ends[1], SOL_SOCKET, SO_KEEPALIVE, 1));
    MUST(shutdown(ends[1], SHUT_WR));
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        char number[16];
        sprintf(number, "%d", ends[1]);
        execl("/proc/self/exe", "case", number, NULL);
        _exit(127);
    }
    close(ends[1]);
    await("ready");
    close(ends[0]);
    reap("new image", child);
    return 0;
}
