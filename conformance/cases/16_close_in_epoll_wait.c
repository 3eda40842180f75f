// shape: self
// A thread sleeps in epoll_wait; another closes the socket: silence, not a wake-up, and others are still reported.
#include "case.h"

static int ep;
static pid_t tid;
static void *waiter(void *argument) {
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    ep_show(argument, ep, 400);
    return NULL;
}

int main(void) {
    case_start();
    int a[2], b[2];
    ep = MUST(epoll_create1(0));
    for (int round = 0; round < 2; round++) {
        tcp_pair(AF_INET, a);
        tcp_pair(AF_INET, b);
        EP_ADD(ep, a[1], EPOLLIN, 1);
        EP_ADD(ep, b[1], EPOLLIN, 2);
        tid = 0;
        pthread_t t = start_thread(waiter, round ? "another's data" : "nothing");
        while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
        wait_asleep(tid);
        close(a[1]);
        if (round) send_text(b[0], "x");
        join(t);
        drain("peer", a[0]);
        close(a[0]);
        close(b[0]);
        close(b[1]);
    }
    return 0;
}
