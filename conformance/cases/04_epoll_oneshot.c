// shape: self
// EPOLLONESHOT: silent after one report until MOD, which reports at once what is there.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    char text[16];
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN | EPOLLONESHOT, 1);
    send_text(ends[0], "a");
    ep_show("first", ep, WAIT_MS);
    EP_QUIET("disarmed", ep);
    send_text(ends[0], "b");
    wait_bytes(ends[1], 2);
    EP_QUIET("still disarmed", ep);
    EP_MOD(ep, ends[1], EPOLLIN | EPOLLONESHOT, 2);
    ep_show("armed again, ready", ep, WAIT_MS);
    EP_QUIET("disarmed", ep);
    R("recv", recv(ends[1], text, 16, 0));
    EP_MOD(ep, ends[1], EPOLLIN | EPOLLONESHOT | EPOLLET, 3);
    EP_QUIET("armed, not ready", ep);
    send_text(ends[0], "c");
    ep_show("c", ep, WAIT_MS);
    EP_QUIET("disarmed", ep);
    R("ADD again", ep_ctl(ep, EPOLL_CTL_ADD, ends[1], EPOLLIN, 4));
    close(ends[0]);
    wait_mask(ends[1], POLLIN | POLLRDHUP, POLLRDHUP);
    EP_QUIET("disarmed also for eof", ep);
    EP_MOD(ep, ends[1], EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, 5);
    ep_show("eof", ep, WAIT_MS);
    R("DEL", ep_ctl(ep, EPOLL_CTL_DEL, ends[1], 0, 0));
    R("DEL again", ep_ctl(ep, EPOLL_CTL_DEL, ends[1], 0, 0));
    return 0;
}
