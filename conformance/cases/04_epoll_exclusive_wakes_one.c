// shape: self
// Two processes wait with EPOLLEXCLUSIVE while connections come one by one: each is taken exactly once.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET);
    nonblock(listener);
    int counts[2];
    MUST(pipe(counts));
    pid_t workers[2];
    for (int i = 0; i < 2; i++)
        if ((workers[i] = must_fork()) == 0) {
            int ep = MUST(epoll_create1(0));
            EP_ADD(ep, listener, EPOLLIN | EPOLLEXCLUSIVE, 1);
            for (;;) {
                struct epoll_event e;
                MUST(epoll_wait(ep, &e, 1, -1));
                int fd = accept(listener, NULL, NULL);
                if (fd < 0) continue;
                char c;
                MUST(recv(fd, &c, 1, 0));
                close(fd);
                MUST(write(counts[1], &c, 1));
                if (c == 'q') _exit(0);
            }
        }
    for (int i = 0; i < 2; i++) wait_asleep(workers[i]);
    for (int i = 0; i < 10; i++) {
        int fd = connect_to(AF_INET, port_of(listener));
        send_text(fd, "x");
        char c;
        MUST(read(counts[0], &c, 1));
        T("taken %c", c);
        drain("client", fd);
        close(fd);
    }
    for (int i = 0; i < 2; i++) { // each quits on its own 'q', so the second is taken by the other one
        int fd = connect_to(AF_INET, port_of(listener));
        send_text(fd, "q");
        drain("client", fd);
        close(fd);
    }
    for (int i = 0; i < 2; i++) reap("worker", workers[i]);
    return 0;
}
