// shape: self
// With no event asked for, ERR and HUP still come, and RDHUP and IN do not.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], 0, 1);
    send_text(ends[0], "x");
    wait_bytes(ends[1], 1);
    EP_QUIET("data", ep);
    MUST(shutdown(ends[0], SHUT_WR));
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    EP_QUIET("eof", ep);
    MUST(shutdown(ends[1], SHUT_WR));
    ep_show("both shut", ep, WAIT_MS);
    close(ends[0]);
    close(ends[1]);
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], 0, 2);
    close_rst(ends[0]);
    wait_mask(ends[1], 0, POLLERR | POLLHUP);
    ep_show("reset", ep, WAIT_MS);
    return 0;
}
