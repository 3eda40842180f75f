// shape: self
// A fork handler that makes the child an epoll instance of its own, as libuv's loops do for uvloop: closed by name or by number, with
// sockets in it, before the child's fork has returned.
#include "case.h"

static int ep, ends[2], by_number;

static void in_child(void) {
    alarm(CASE_ALARM_S);
    if (by_number)
        syscall(SYS_close, ep);
    else
        close(ep);
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    EP_ADD(ep, ends[1], EPOLLIN, 7);
}

int main(void) {
    case_start();
    MUST0(pthread_atfork(NULL, NULL, in_child));
    for (by_number = 0; by_number < 2; by_number++) {
        tcp_pair(AF_INET, ends);
        ep = MUST(epoll_create1(EPOLL_CLOEXEC));
        EP_ADD(ep, ends[1], EPOLLIN, 3);
        for (int i = 0; i < 2; i++) {
            pid_t child = must_fork();
            if (child == 0) {
                ep_show("in the child", ep, WAIT_MS);
                expect_text("in the child", ends[1], 4);
                _exit(0);
            }
            send_text(ends[0], "data");
            reap("child", child);
            EP_QUIET("in the parent", ep);
        }
        send_text(ends[0], "more");
        ep_show("in the parent", ep, WAIT_MS);
        expect_text("in the parent", ends[1], 4);
        close(ep), close(ends[0]), close(ends[1]);
    }
    return 0;
}
