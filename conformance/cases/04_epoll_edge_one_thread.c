// shape: self
// Two threads in epoll_wait on one epoll: an edge wakes one of them, the other sleeps on.
#include "case.h"

static int ep, woken;
static pid_t tids[2];

static void *waiter(void *argument) {
    __atomic_store_n(&tids[(long)argument], my_tid(), __ATOMIC_SEQ_CST);
    struct epoll_event e;
    int n = epoll_wait(ep, &e, 1, 600);
    if (n == 1) __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

int main(void) {
    case_start();
    int ends[2];
    ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN | EPOLLET, 1);
    pthread_t t[2];
    for (long i = 0; i < 2; i++) {
        t[i] = start_thread(waiter, (void *)i);
        while (!__atomic_load_n(&tids[i], __ATOMIC_SEQ_CST)) msleep(1);
    }
    for (int i = 0; i < 2; i++) wait_asleep(tids[i]);
    send_text(ends[0], "x");
    for (int i = 0; i < 2; i++) join(t[i]);
    T("woken: %d", woken);
    return 0;
}
