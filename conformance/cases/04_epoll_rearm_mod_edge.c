// shape: self
// Edge-triggered: MOD reports what is ready again, even unchanged; so nginx and tokio rely on it.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
    ep_show("ADD", ep, WAIT_MS);
    EP_QUIET("once", ep);
    EP_MOD(ep, ends[1], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
    ep_show("MOD, the same", ep, WAIT_MS);
    EP_QUIET("once", ep);
    send_text(ends[0], "x");
    ep_show("data brings OUT along", ep, WAIT_MS);
    EP_QUIET("once", ep);
    EP_MOD(ep, ends[1], EPOLLIN | EPOLLET, 1);
    ep_show("MOD, IN only", ep, WAIT_MS);
    EP_QUIET("once", ep);
    close(ends[0]);
    ep_show("eof", ep, WAIT_MS);
    EP_QUIET("once", ep);
    EP_MOD(ep, ends[1], EPOLLRDHUP | EPOLLET, 1);
    ep_show("MOD, RDHUP only", ep, WAIT_MS);
    EP_MOD(ep, ends[1], EPOLLET, 1);
    EP_QUIET("MOD, nothing", ep);
    return 0;
}
