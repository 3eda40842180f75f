// shape: self
// An epoll without FD_CLOEXEC crosses exec with what is registered in it, and is used by the new image.
#include "case.h"

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) {
        int ep = atoi(argv[1]), fd = atoi(argv[2]);
        ep_show("new image", ep, WAIT_MS);
        expect_text("new image", fd, 5);
        EP_QUIET("read", ep);
        EP_MOD(ep, fd, EPOLLOUT, 8);
        ep_show("MOD", ep, WAIT_MS);
        R("DEL", ep_ctl(ep, EPOLL_CTL_DEL, fd, 0, 0));
        EP_QUIET("DEL", ep);
        EP_ADD(ep, fd, EPOLLIN, 9);
        tell("waits");
        ep_show("eof", ep, WAIT_MS);
        return 0;
    }
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 7);
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        char text[2][16];
        sprintf(text[0], "%d", ep);
        sprintf(text[1], "%d", ends[1]);
        execl("/proc/self/exe", "case", text[0], text[1], NULL);
        _exit(127);
    }
    close(ends[1]);
    send_text(ends[0], "hello");
    await("waits");
    close(ends[0]);
    reap("new image", child);
    return 0;
}
