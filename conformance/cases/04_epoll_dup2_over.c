// shape: self
// dup2 over a registered socket closes it: its registration is gone with it.
#include "case.h"

int main(void) {
    case_start();
    int a[2], b[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, a);
    tcp_pair(AF_INET, b);
    EP_ADD(ep, a[1], EPOLLIN | EPOLLRDHUP, 1);
    EP_ADD(ep, b[1], EPOLLIN | EPOLLRDHUP, 2);
    MUST(dup2(b[1], a[1]));
    drain("the old peer", a[0]);
    send_text(b[0], "x");
    ep_show("the new one has only its own", ep, WAIT_MS);
    close(b[1]);
    ep_show("a duplicate keeps it", ep, WAIT_MS);
    close(a[1]);
    EP_QUIET("gone", ep);
    return 0;
}
