// shape: self
// An epoll in an epoll, and an epoll in poll and select.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], inner = MUST(epoll_create1(0)), outer = MUST(epoll_create1(0));
    char c;
    tcp_pair(AF_INET, ends);
    EP_ADD(inner, ends[1], EPOLLIN, 1);
    EP_ADD(outer, inner, EPOLLIN, 2);
    EP_QUIET("outer", outer);
    T("poll of inner: %s", mask(poll1(inner, POLLIN, QUIET_MS)));
    send_text(ends[0], "a");
    ep_show("outer", outer, WAIT_MS);
    T("poll of inner: %s", mask(poll1(inner, POLLIN, WAIT_MS)));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(inner, &set);
    struct timeval limit = {10, 0};
    R("select of inner", select(inner + 1, &set, NULL, NULL, &limit));
    ep_show("inner", inner, WAIT_MS);
    R("recv", recv(ends[1], &c, 1, 0));
    EP_QUIET("inner", inner);
    EP_QUIET("outer", outer);
    T("poll of inner: %s", mask(poll1(inner, POLLIN, 0)));
    R("a loop", ep_ctl(inner, EPOLL_CTL_ADD, outer, EPOLLIN, 3));
    send_text(ends[0], "b");
    ep_show("outer", outer, WAIT_MS);
    R("DEL", ep_ctl(outer, EPOLL_CTL_DEL, inner, 0, 0));
    EP_QUIET("outer", outer);
    return 0;
}
