// shape: self
// What epoll_ctl and epoll_wait refuse.
#include "case.h"

int main(void) {
    case_start();
    int ep = MUST(epoll_create1(0)), ends[2], file = MUST(open("/proc/self/exe", O_RDONLY));
    struct epoll_event e;
    tcp_pair(AF_INET, ends);
    R("ADD", ep_ctl(ep, EPOLL_CTL_ADD, ends[0], EPOLLIN, 1));
    R("ADD again", ep_ctl(ep, EPOLL_CTL_ADD, ends[0], EPOLLIN, 1));
    R("MOD of one not in it", ep_ctl(ep, EPOLL_CTL_MOD, ends[1], EPOLLIN, 1));
    R("DEL of one not in it", ep_ctl(ep, EPOLL_CTL_DEL, ends[1], EPOLLIN, 1));
    R("a bad fd", ep_ctl(ep, EPOLL_CTL_ADD, 999, EPOLLIN, 1));
    R("a bad epoll", ep_ctl(999, EPOLL_CTL_ADD, ends[1], EPOLLIN, 1));
    R("a socket as the epoll", ep_ctl(ends[0], EPOLL_CTL_ADD, ends[1], EPOLLIN, 1));
    R("a regular file", ep_ctl(ep, EPOLL_CTL_ADD, file, EPOLLIN, 1));
    R("itself", ep_ctl(ep, EPOLL_CTL_ADD, ep, EPOLLIN, 1));
    R("a wrong operation", ep_ctl(ep, 77, ends[1], EPOLLIN, 1));
    R("no event", epoll_ctl(ep, EPOLL_CTL_ADD, ends[1], NULL));
    R("DEL without an event", epoll_ctl(ep, EPOLL_CTL_DEL, ends[0], NULL));
    R("wait for 0 events", epoll_wait(ep, &e, 0, 0));
    R("wait for -1 events", epoll_wait(ep, &e, -1, 0));
    R("wait on a socket", epoll_wait(ends[0], &e, 1, 0));
    R("wait on a bad fd", epoll_wait(999, &e, 1, 0));
    EP_ADD(ep, ends[1], EPOLLOUT, 1);
    R("epoll_create of 0", epoll_create(0));
    R("epoll_create1 of a wrong flag", epoll_create1(1));
    RF("epoll_create", epoll_create(1));
    return 0;
}
