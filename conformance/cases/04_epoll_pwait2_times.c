// shape: self
// The times of epoll_wait and epoll_pwait2: 0, short, until woken; never early.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    struct epoll_event e;
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    int64_t begun = now_ms();
    R("epoll_wait 0", epoll_wait(ep, &e, 1, 0));
    T("at once: %d", now_ms() - begun < 1000);
    begun = now_ms();
    R("epoll_wait 80 ms", epoll_wait(ep, &e, 1, 80));
    int64_t took = now_ms() - begun;
    T("not early, not late: %d", took >= 79 && took < 2000);
    struct timespec limit = {0, 70500000};
    begun = now_ms();
    R("epoll_pwait2 70.5 ms", epoll_pwait2(ep, &e, 1, &limit, NULL));
    took = now_ms() - begun;
    T("not early, not late: %d", took >= 69 && took < 2000);
    limit = (struct timespec){0, 2000000000};
    R("epoll_pwait2 with a wrong time", epoll_pwait2(ep, &e, 1, &limit, NULL));
    limit = (struct timespec){0, 0};
    send_text(ends[0], "x");
    wait_bytes(ends[1], 1);
    R("epoll_pwait2 0", epoll_pwait2(ep, &e, 1, &limit, NULL));
    R("epoll_pwait2 without a time", epoll_pwait2(ep, &e, 1, NULL, NULL));
    R("epoll_pwait -1", epoll_pwait(ep, &e, 1, -1, NULL));
    T("mask %s", mask(e.events));
    return 0;
}
