// shape: self
// One socket in two epolls of one process and in its child's: each has its own edges.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], a = MUST(epoll_create1(0)), b = MUST(epoll_create1(0));
    char c;
    tcp_pair(AF_INET, ends);
    EP_ADD(a, ends[1], EPOLLIN | EPOLLET, 1);
    EP_ADD(b, ends[1], EPOLLIN, 2);
    struct gate ready = make_gate(), go = make_gate();
    pid_t child = must_fork();
    if (child == 0) {
        int own = MUST(epoll_create1(0));
        EP_ADD(own, ends[1], EPOLLIN | EPOLLET, 3);
        gate_open(ready);
        gate_wait(go);
        ep_show("child", own, WAIT_MS);
        EP_QUIET("child, once", own);
        _exit(0);
    }
    gate_wait(ready);
    send_text(ends[0], "x");
    ep_show("a", a, WAIT_MS);
    EP_QUIET("a, once", a);
    ep_show("b", b, WAIT_MS);
    ep_show("b, level", b, WAIT_MS);
    gate_open(go);
    reap("child", child);
    ep_show("b, after the child", b, WAIT_MS);
    R("recv", recv(ends[1], &c, 1, 0));
    EP_QUIET("b, read", b);
    return 0;
}
