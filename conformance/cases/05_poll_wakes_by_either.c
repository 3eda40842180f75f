// shape: self
// A thread asleep in poll, select or epoll_wait over a socket and a pipe wakes by either.
#include "case.h"

static int ends[2], pipes[2], how;
static pid_t tid;

static void *waiter(void *argument) {
    (void)argument;
    int ep = MUST(epoll_create1(0));
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    EP_ADD(ep, pipes[0], EPOLLIN, 2);
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    if (how == 0) {
        struct pollfd p[2] = {{ends[1], POLLIN, 0}, {pipes[0], POLLIN, 0}};
        int n = poll(p, 2, WAIT_MS);
        T("poll: %d %s %s", n, mask(p[0].revents), mask(p[1].revents));
    } else if (how == 1) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(ends[1], &set);
        FD_SET(pipes[0], &set);
        int n = select((ends[1] > pipes[0] ? ends[1] : pipes[0]) + 1, &set, NULL, NULL, NULL);
        T("select: %d %d %d", n, FD_ISSET(ends[1], &set), FD_ISSET(pipes[0], &set));
    } else {
        ep_show("epoll", ep, -1);
    }
    close(ep);
    return NULL;
}

int main(void) {
    case_start();
    char c;
    tcp_pair(AF_INET, ends);
    MUST(pipe(pipes));
    for (how = 0; how < 3; how++)
        for (int by = 0; by < 2; by++) {
            tid = 0;
            pthread_t t = start_thread(waiter, NULL);
            while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
            wait_asleep(tid);
            if (by)
                MUST(write(pipes[1], "x", 1));
            else
                send_text(ends[0], "x");
            join(t);
            MUST(by ? read(pipes[0], &c, 1) : recv(ends[1], &c, 1, 0));
        }
    return 0;
}
