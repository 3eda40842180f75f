// shape: self
// As memcached does: one thread accepts, others serve from an epoll of their own, told through a pipe.
#include "case.h"

static int pipes[2][2], listener, port;
static void *worker(void *argument) {
    int which = (long)argument, ep = MUST(epoll_create1(0)), open = 0, quit = 0;
    EP_ADD(ep, pipes[which][0], EPOLLIN, 0);
    while (!quit || open) {
        struct epoll_event e[8];
        int n = epoll_wait(ep, e, 8, -1);
        for (int i = 0; i < n; i++) {
            if (e[i].data.u64 == 0) {
                int fd;
                if (read(pipes[which][0], &fd, sizeof fd) != sizeof fd) {
                    quit = 1;
                    MUST(ep_ctl(ep, EPOLL_CTL_DEL, pipes[which][0], 0, 0));
                    continue;
                }
                EP_ADD(ep, fd, EPOLLIN, fd);
                open++;
                continue;
            }
            char text[100];
            ssize_t got = recv(e[i].data.u64, text, sizeof text, 0);
            if (got > 0) {
                send_all(e[i].data.u64, text, got);
            } else {
                close(e[i].data.u64);
                open--;
            }
        }
    }
    close(ep);
    return NULL;
}
static void *acceptor(void *argument) {
    (void)argument;
    for (int i = 0; i < 30; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        MUST(write(pipes[i % 2][1], &fd, sizeof fd));
    }
    close(pipes[0][1]);
    close(pipes[1][1]);
    return NULL;
}

int main(void) {
    case_start();
    listener = make_listener(AF_INET);
    port = port_of(listener);
    pthread_t workers[2];
    for (long i = 0; i < 2; i++) {
        MUST(pipe(pipes[i]));
        workers[i] = start_thread(worker, (void *)i);
    }
    pthread_t a = start_thread(acceptor, NULL);
    int fds[30], good = 0;
    for (int i = 0; i < 30; i++) fds[i] = connect_to(AF_INET, port);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 30; i++) MUST(send(fds[i], &i, sizeof i, 0));
        for (int i = 0; i < 30; i++) {
            int back = -1;
            recv_all(fds[i], &back, sizeof back);
            good += back == i;
        }
    }
    for (int i = 0; i < 30; i++) close(fds[i]);
    join(a);
    for (int i = 0; i < 2; i++) join(workers[i]);
    T("good %d", good);
    return 0;
}
