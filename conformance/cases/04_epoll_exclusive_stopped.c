// shape: self
// One of two processes that wait with EPOLLEXCLUSIVE is stopped: the other serves all who come.
#include "case.h"

enum { CLIENTS = 30 };

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener);
    nonblock(listener);
    pid_t workers[2];
    for (int i = 0; i < 2; i++)
        if ((workers[i] = must_fork()) == 0) {
            int ep = MUST(epoll_create1(0));
            EP_ADD(ep, listener, EPOLLIN | EPOLLEXCLUSIVE, 1);
            for (;;) {
                struct epoll_event e;
                if (epoll_wait(ep, &e, 1, -1) != 1) continue;
                int fd = accept(listener, NULL, NULL);
                if (fd < 0) continue;
                send_text(fd, "x");
                close(fd);
            }
        }
    for (int i = 0; i < 2; i++) wait_asleep(workers[i]);
    for (int stopped = 0; stopped < 2; stopped++) {
        int status;
        kill(workers[stopped], SIGSTOP);
        MUST(waitpid(workers[stopped], &status, WUNTRACED));
        T("stopped %d", WIFSTOPPED(status));
        int fds[CLIENTS], served = 0;
        for (int i = 0; i < CLIENTS; i++) fds[i] = connect_to(AF_INET, port);
        for (int i = 0; i < CLIENTS; i++) {
            char c;
            served += recv(fds[i], &c, 1, 0) == 1;
            close(fds[i]);
        }
        T("served %d", served);
        kill(workers[stopped], SIGCONT);
    }
    for (int i = 0; i < 2; i++) {
        kill(workers[i], SIGKILL);
        reap("worker", workers[i]);
    }
    return 0;
}
