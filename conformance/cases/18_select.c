// shape: self
// select and pselect: which sets a socket is in, in each state; counts; bad descriptors; the time.
#include "case.h"

static void look(const char *what, int fd) {
    fd_set r, w, x;
    struct timeval limit = {0, 20000};
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&x);
    FD_SET(fd, &r);
    FD_SET(fd, &w);
    FD_SET(fd, &x);
    int n = select(fd + 1, &r, &w, &x, &limit);
    T("%s: %d read %d write %d except %d", what, n, FD_ISSET(fd, &r), FD_ISSET(fd, &w), FD_ISSET(fd, &x));
}

int main(void) {
    case_start();
    int ends[2], listener = make_listener(AF_INET), fresh = tcp_socket(AF_INET);
    tcp_pair(AF_INET, ends);
    look("fresh", fresh);
    look("listener", listener);
    look("connection", ends[1]);
    send_text(ends[0], "x");
    wait_bytes(ends[1], 1);
    look("data", ends[1]);
    connect_to(AF_INET, port_of(listener));
    wait_mask(listener, POLLIN, POLLIN);
    look("listener with one", listener);
    MUST(shutdown(ends[0], SHUT_WR));
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    look("eof", ends[1]);
    close_rst(ends[0]);
    wait_mask(ends[1], 0, POLLERR);
    look("reset", ends[1]);
    fd_set r;
    FD_ZERO(&r);
    FD_SET(60, &r);
    struct timeval limit = {0, 0};
    R("a bad fd", select(61, &r, NULL, NULL, &limit));
    R("nfds -1", select(-1, &r, NULL, NULL, &limit));
    limit = (struct timeval){-1, 0};
    R("a negative time", select(0, NULL, NULL, NULL, &limit));
    limit = (struct timeval){0, 30000};
    R("no descriptors", select(0, NULL, NULL, NULL, &limit));
    T("the time that is left: %ld", (long)limit.tv_usec);
    tcp_pair(AF_INET, ends);
    FD_ZERO(&r);
    FD_SET(ends[1], &r);
    struct timespec fine = {0, 30000000};
    R("pselect", pselect(ends[1] + 1, &r, NULL, NULL, &fine, NULL));
    T("cleared: %d, its time untouched: %d", !FD_ISSET(ends[1], &r), fine.tv_nsec == 30000000);
    send_text(ends[0], "x");
    FD_SET(ends[1], &r);
    limit = (struct timeval){8, 0};
    R("select", select(ends[1] + 1, &r, NULL, NULL, &limit));
    T("some time is left: %d", limit.tv_sec >= 0 && limit.tv_sec < 8);
    return 0;
}
