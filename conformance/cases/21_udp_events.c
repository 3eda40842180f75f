// shape: self
// poll, select and epoll: masks at rest, level and edge, one datagram at a time; oneshot.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        udp_pair(family, ends);
        short all = ALL_EVENTS | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND;
        T("fresh %s", mask(poll1(udp_socket(family), all, 0)));
        T("idle %s", mask(poll1(ends[0], all, 0)));
        MUST(send(ends[0], "1", 1, 0));
        MUST(send(ends[0], "2", 1, 0));
        wait_mask(ends[1], POLLIN, POLLIN);
        T("readable %s", mask(poll1(ends[1], all, 0)));
        fd_set r, w;
        FD_ZERO(&r);
        FD_ZERO(&w);
        FD_SET(ends[1], &r);
        FD_SET(ends[1], &w);
        R("select", select(ends[1] + 1, &r, &w, NULL, &(struct timeval){5, 0}));
        udp_expect("one", ends[1]);
        udp_expect("two", ends[1]);
        T("read out %s", mask(poll1(ends[1], POLLIN, QUIET_MS)));
        int ep = MUST(epoll_create1(0));
        EP_ADD(ep, ends[1], EPOLLIN | EPOLLET, 7);
        EP_QUIET("edge, empty", ep);
        MUST(send(ends[0], "3", 1, 0));
        ep_show("edge", ep, WAIT_MS);
        EP_QUIET("told already", ep);
        MUST(send(ends[0], "4", 1, 0));
        ep_show("another edge", ep, WAIT_MS);
        udp_expect("three", ends[1]);
        udp_expect("four", ends[1]);
        EP_QUIET("nothing new", ep);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLOUT, 8);
        ep_show("level", ep, WAIT_MS);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLONESHOT, 9);
        MUST(send(ends[0], "5", 1, 0));
        ep_show("once", ep, WAIT_MS);
        EP_QUIET("not again", ep);
        EP_MOD(ep, ends[1], EPOLLIN | EPOLLONESHOT, 10);
        ep_show("armed again", ep, WAIT_MS);
        udp_expect("five", ends[1]);
        close(ep);
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
