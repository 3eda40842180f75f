// shape: self
// An epoll descriptor crosses exec, and the program that got it waits on it too, beside the one that made it: each event wakes the
// maker. (Natively the other is told as well, since it is one kernel object; what it is told is not shown.)
#include "case.h"

enum { EVENTS = 20 };

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) { // in slices, so that it is the last to have come each time
        int ep = atoi(argv[1]), stop = atoi(argv[2]);
        struct epoll_event event;
        T("the other waits");
        while (poll1(stop, POLLIN, 0) == 0) epoll_wait(ep, &event, 1, 3);
        return 0;
    }
    int ends[2], stop[2], ep = MUST(epoll_create1(0));
    MUST(pipe(stop));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    pid_t child = must_fork();
    if (child == 0) {
        char numbers[2][16];
        sprintf(numbers[0], "%d", ep);
        sprintf(numbers[1], "%d", stop[0]);
        execl("/proc/self/exe", "case", numbers[0], numbers[1], NULL);
        _exit(127);
    }
    struct one_by_one each = {ends[0], ends[1], EVENTS, my_tid()};
    pthread_t sender = start_thread(send_one_by_one, &each);
    int woken = 0;
    for (int i = 0; i < EVENTS; i++) {
        struct epoll_event event;
        int n = epoll_wait(ep, &event, 1, -1);
        if (n != 1 || event.data.u32 != 1) break;
        char c;
        woken += recv(ends[1], &c, 1, 0) == 1;
    }
    T("woken %d times", woken);
    join(sender);
    MUST(write(stop[1], "s", 1));
    reap("the other", child);
    return 0;
}
