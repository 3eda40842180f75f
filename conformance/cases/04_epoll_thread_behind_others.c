// shape: self
// As 04_epoll_thread_left_behind, with the parent waiting on the epoll too, as the last to have come: what comes to the child's connection
// wakes the child's thread all the same.
#include "case.h"

static int ep;
static pid_t tid;

static void *wait_there(void *events) {
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    struct epoll_event event;
    int n;
    do n = epoll_wait(ep, &event, 1, -1);
    while (n == 1 && event.data.u32 != 2);
    *(int *)events = n;
    return NULL;
}

int main(void) {
    case_start();
    int ends[2], others[2], stop[2];
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    MUST(pipe(stop));
    EP_ADD(ep, stop[0], EPOLLIN, 1);
    tcp_pair(AF_INET, ends);
    tcp_pair(AF_INET, others);
    struct gate added = make_gate(), waits = make_gate(), also = make_gate();
    pid_t child = must_fork();
    if (child == 0) {
        gate_wait(added);
        int events = 0;
        pthread_t waiter = start_thread(wait_there, &events);
        while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
        wait_asleep(tid);
        gate_open(waits);
        gate_wait(also);
        EP_ADD(ep, ends[1], EPOLLIN, 2);
        send_text(ends[0], "x");
        join(waiter);
        T("the child's thread: %d", events);
        _exit(0);
    }
    // A connection of the parent's own, so that it takes whatever wakes it for its own.
    EP_ADD(ep, others[1], EPOLLIN, 3);
    ep_show("nothing yet", ep, 0);
    gate_open(added);
    gate_wait(waits);
    int events = 0;
    pthread_t waiter = start_thread(wait_there, &events);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
    wait_asleep(tid);
    gate_open(also);
    reap("child", child);
    EP_MOD(ep, others[1], EPOLLIN, 2);
    send_text(others[0], "x");
    join(waiter);
    T("the parent's: %d", events);
    return 0;
}
