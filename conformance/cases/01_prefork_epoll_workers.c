// shape: self
// As nginx does: each worker has an epoll of its own over the shared, non-blocking listener.
#include "case.h"

static void worker(int listener) {
    int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    EP_ADD(ep, listener, EPOLLIN | EPOLLEXCLUSIVE, 1);
    for (;;) {
        struct epoll_event e;
        if (epoll_wait(ep, &e, 1, -1) != 1) continue;
        for (;;) {
            int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (fd < 0 && errno == EAGAIN) break;
            MUST(fd);
            char c;
            if (recv(fd, &c, 1, 0) == 1) send_text(fd, "served");
            close(fd);
        }
    }
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener);
    nonblock(listener);
    pid_t workers[4];
    for (int i = 0; i < 4; i++)
        if ((workers[i] = must_fork()) == 0) worker(listener);
    int served = 0;
    for (int round = 0; round < 10; round++) {
        int fds[8];
        for (int i = 0; i < 8; i++) fds[i] = connect_to(AF_INET, port);
        for (int i = 0; i < 8; i++) send_text(fds[i], "x");
        for (int i = 0; i < 8; i++) {
            char answer[6];
            served += recv_all(fds[i], answer, 6) == 6 && !memcmp(answer, "served", 6);
            close(fds[i]);
        }
    }
    T("served %d", served);
    for (int i = 0; i < 4; i++) {
        kill(workers[i], SIGKILL);
        reap("worker", workers[i]);
    }
    return 0;
}
