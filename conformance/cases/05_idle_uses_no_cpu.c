// shape: self
// Twenty connections and a listener, idle in epoll_wait, poll and recv: the process uses no CPU time.
#include "case.h"

static int64_t cpu_us(void) {
    struct rusage u;
    MUST(getrusage(RUSAGE_SELF, &u));
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000ll + u.ru_utime.tv_usec + u.ru_stime.tv_usec;
}
static int64_t switches(void) {
    struct rusage u;
    MUST(getrusage(RUSAGE_SELF, &u));
    return u.ru_nvcsw;
}

int main(void) {
    case_start();
    int ends[20][2], ep = MUST(epoll_create1(0)), listener = make_listener(AF_INET);
    for (int i = 0; i < 20; i++) {
        tcp_pair(AF_INET, ends[i]);
        EP_ADD(ep, ends[i][1], EPOLLIN, i);
    }
    EP_ADD(ep, listener, EPOLLIN, 100);
    for (int how = 0; how < 3; how++) {
        msleep(100); // lets what setting up left behind settle
        int64_t before = cpu_us(), slept = switches();
        if (how == 0) ep_show("epoll_wait", ep, 700);
        if (how == 1) T("poll: %s", mask(poll1(ends[0][1], POLLIN, 700)));
        if (how == 2) {
            struct timeval limit = {0, 700000};
            MUST(setsockopt(ends[0][1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
            char c;
            R("recv", recv(ends[0][1], &c, 1, 0));
        }
        T("CPU under 20 ms in 700: %d, slept fewer than 20 times: %d", cpu_us() - before < 20000,
          switches() - slept < 20);
    }
    return 0;
}
