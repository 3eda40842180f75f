// shape: self
// A thread asleep on the outer of two nested epolls, and in poll on one, wakes by data on the socket.
#include "case.h"

static int outer, inner;
static pid_t tid;

static void *waiter(void *argument) {
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    if (argument)
        T("poll: %s", mask(poll1(inner, POLLIN, WAIT_MS)));
    else
        ep_show("outer", outer, WAIT_MS);
    return NULL;
}

int main(void) {
    case_start();
    int ends[2];
    char c;
    inner = MUST(epoll_create1(0));
    outer = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(inner, ends[1], EPOLLIN, 1);
    EP_ADD(outer, inner, EPOLLIN, 2);
    for (int i = 0; i < 2; i++) {
        tid = 0;
        pthread_t t = start_thread(waiter, i ? "poll" : NULL);
        while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
        wait_asleep(tid);
        T("sends");
        send_text(ends[0], "x");
        join(t);
        R("recv", recv(ends[1], &c, 1, 0));
    }
    return 0;
}
