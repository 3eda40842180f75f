// shape: pair
// 500 connections open at once, all used twice, then closed.
#include "case.h"

enum { COUNT = 500 };
static void room(void) {
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
}
static void server_role(int listener) {
    room();
    int ep = MUST(epoll_create1(0)), fds[COUNT], echoed = 0, ended = 0;
    for (int i = 0; i < COUNT; i++) {
        fds[i] = MUST(accept(listener, NULL, NULL));
        EP_ADD(ep, fds[i], EPOLLIN, i);
    }
    T("accepted all");
    while (ended < COUNT) {
        struct epoll_event e[64];
        int n = epoll_wait(ep, e, 64, WAIT_MS);
        if (n <= 0) break;
        for (int i = 0; i < n; i++) {
            int fd = fds[e[i].data.u64], number;
            ssize_t got = recv_all(fd, &number, sizeof number);
            if (got == sizeof number) {
                MUST(send_all(fd, &number, sizeof number));
                echoed++;
            } else {
                close(fd);
                ended++;
            }
        }
    }
    T("echoed %d, ended %d", echoed, ended);
}
static void client_role(int port) {
    room();
    int fds[COUNT], good = 0;
    for (int i = 0; i < COUNT; i++) fds[i] = connect_to(AF_INET, port);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < COUNT; i++) {
            int number = round * COUNT + i;
            MUST(send_all(fds[i], &number, sizeof number));
        }
        for (int i = COUNT - 1; i >= 0; i--) {
            int number = -1;
            recv_all(fds[i], &number, sizeof number);
            good += number == round * COUNT + i;
        }
    }
    for (int i = 0; i < COUNT; i++) close(fds[i]);
    T("good %d", good);
}
PAIR_MAIN(AF_INET)
