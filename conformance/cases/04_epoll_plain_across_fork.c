// shape: self
// An epoll of pipes crosses fork, and the child waits on it when the parent adds a connection: each event of that wakes the parent, and
// the child's wait without a limit ends with an event of the pipes alone. (Natively the child is told of the connection too; it does not
// say so.)
#include "case.h"

enum { EVENTS = 20 };

int main(void) {
    case_start();
    int ends[2], stop[2], ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    MUST(pipe(stop));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, stop[0], EPOLLIN, 1);
    pid_t child = must_fork();
    if (child == 0) {
        struct epoll_event event;
        int n;
        do n = epoll_wait(ep, &event, 1, -1);
        while (n == 1 && event.data.u32 == 2);
        T("child: %d [%u]", n, event.data.u32);
        _exit(0);
    }
    wait_asleep(child);
    EP_ADD(ep, ends[1], EPOLLIN, 2);
    struct one_by_one each = {ends[0], ends[1], EVENTS, my_tid()};
    pthread_t sender = start_thread(send_one_by_one, &each);
    int woken = 0;
    for (int i = 0; i < EVENTS; i++) {
        struct epoll_event event;
        int n = epoll_wait(ep, &event, 1, -1);
        if (n != 1 || event.data.u32 != 2) break;
        char c;
        woken += recv(ends[1], &c, 1, 0) == 1;
    }
    T("woken %d times", woken);
    join(sender);
    MUST(write(stop[1], "s", 1));
    reap("child", child);
    return 0;
}
