// shape: self
// A child has an epoll of its parent's, and a thread waits on it while another adds a connection: what comes there wakes the thread.
#include "case.h"

static int ep;

static void *wait_there(void *events) {
    *(int *)events = epoll_wait(ep, (struct epoll_event[1]){}, 1, -1);
    return NULL;
}

int main(void) {
    case_start();
    int ends[2], stop[2];
    ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    MUST(pipe(stop));
    EP_ADD(ep, stop[0], EPOLLIN, 1);
    tcp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        int events = 0;
        pthread_t waiter = start_thread(wait_there, &events);
        msleep(50); // it waits by now, or finds the same a moment later
        EP_ADD(ep, ends[1], EPOLLIN, 2);
        send_text(ends[0], "x");
        join(waiter);
        T("the thread: %d", events);
        _exit(0);
    }
    reap("child", child);
    return 0;
}
