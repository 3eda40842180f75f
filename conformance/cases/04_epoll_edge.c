// shape: self
// Edge-triggered: once per arrival, whether or not all was read; never without one.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2], ep = MUST(epoll_create1(0));
        char text[16];
        tcp_pair(family, ends);
        nonblock(ends[1]);
        EP_ADD(ep, ends[1], EPOLLIN | EPOLLRDHUP | EPOLLET, 1);
        EP_QUIET("nothing", ep);
        send_text(ends[0], "abc");
        ep_show("abc", ep, WAIT_MS);
        EP_QUIET("once", ep);
        R("recv", recv(ends[1], text, 1, 0));
        EP_QUIET("a partial read is no edge", ep);
        send_text(ends[0], "def");
        ep_show("new data", ep, WAIT_MS);
        EP_QUIET("once", ep);
        R("recv", recv(ends[1], text, 16, 0));
        R("recv", recv(ends[1], text, 16, 0));
        EP_QUIET("EAGAIN is no edge", ep);
        send_text(ends[0], "g");
        ep_show("re-armed", ep, WAIT_MS);
        R("recv", recv(ends[1], text, 16, 0));
        MUST(shutdown(ends[0], SHUT_WR));
        ep_show("eof", ep, WAIT_MS);
        EP_QUIET("eof once", ep);
        R("recv", recv(ends[1], text, 16, 0));
        EP_QUIET("after eof", ep);
        close(ends[0]);
        close(ends[1]);
        close(ep);
    }
    return 0;
}
