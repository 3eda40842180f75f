// shape: self
// Sockets numbered above 1023: poll, epoll, and select with a larger set; all calls work there.
#include "case.h"

int main(void) {
    case_start();
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    T("room for it: %d", limit.rlim_max >= 4096);
    limit.rlim_cur = 4096;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    int ends[2];
    tcp_pair(AF_INET, ends);
    int high = MUST(fcntl(ends[1], F_DUPFD, 3000)), higher = MUST(dup2(ends[0], 4095));
    close(ends[0]);
    close(ends[1]);
    T("numbers %d %d", high, higher);
    send_text(higher, "x");
    T("poll %s", mask(poll1(high, POLLIN, WAIT_MS)));
    int ep = MUST(epoll_create1(0));
    EP_ADD(ep, high, EPOLLIN, 1);
    ep_show("epoll", ep, WAIT_MS);
    unsigned long set[4096 / 64] = {0};
    set[high / 64] |= 1ul << high % 64;
    struct timeval time = {10, 0};
    R("select", select(high + 1, (fd_set *)set, NULL, NULL, &time));
    T("in the set: %d", !!(set[high / 64] & 1ul << high % 64));
    expect_text("recv", high, 1);
    R("dup2 beyond the limit", dup2(high, 4096));
    R("F_DUPFD beyond it", fcntl(high, F_DUPFD, 5000));
    close(high);
    drain("peer", higher);
    return 0;
}
