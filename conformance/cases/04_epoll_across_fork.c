// shape: self
// An epoll made before fork is used by the child. Natively it is the same object in both; a guest's child has a copy of its
// interest in NetKernel sockets, so the parent does not see what the child changes (the .expect file).
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    struct gate go = make_gate();
    pid_t child = must_fork();
    if (child == 0) {
        gate_wait(go);
        ep_show("child", ep, WAIT_MS);
        expect_text("child", ends[1], 5);
        EP_QUIET("child", ep);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLOUT, 2);
        ep_show("child with OUT", ep, WAIT_MS);
        _exit(0);
    }
    send_text(ends[0], "hello");
    gate_open(go);
    reap("child", child);
    ep_show("the parent sees the child's MOD", ep, WAIT_MS);
    return 0;
}
