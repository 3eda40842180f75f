// shape: self
// Level-triggered: reported as long as it is so, and no longer.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2], ep = MUST(epoll_create1(0));
        char c;
        tcp_pair(family, ends);
        EP_ADD(ep, ends[1], EPOLLIN, 1);
        EP_QUIET("nothing", ep);
        send_text(ends[0], "ab");
        wait_bytes(ends[1], 2);
        ep_show("two bytes", ep, WAIT_MS);
        ep_show("again", ep, WAIT_MS);
        recv(ends[1], &c, 1, 0);
        ep_show("one byte left", ep, WAIT_MS);
        recv(ends[1], &c, 1, 0);
        EP_QUIET("all read", ep);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLOUT, 2);
        ep_show("with OUT", ep, WAIT_MS);
        ep_show("still OUT", ep, WAIT_MS);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLRDHUP, 3);
        EP_QUIET("without OUT", ep);
        close(ends[0]);
        ep_show("eof", ep, WAIT_MS);
        ep_show("still eof", ep, WAIT_MS);
        R("recv", recv(ends[1], &c, 1, 0));
        ep_show("eof stays", ep, WAIT_MS);
        close(ends[1]);
        EP_QUIET("closed", ep);
        close(ep);
    }
    return 0;
}
