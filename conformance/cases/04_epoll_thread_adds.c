// shape: self
// A thread asleep in epoll_wait wakes when another ADDs a ready socket, MODs one, or data comes.
#include "case.h"

static int ep;
static pid_t tid;

static void *waiter(void *argument) {
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    ep_show(argument, ep, WAIT_MS);
    return NULL;
}
static pthread_t asleep(const char *what) {
    tid = 0;
    pthread_t t = start_thread(waiter, (void *)what);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
    wait_asleep(tid);
    return t;
}

int main(void) {
    case_start();
    int ends[2], fresh[2];
    char c;
    ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    tcp_pair(AF_INET, fresh);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    pthread_t t = asleep("data");
    send_text(ends[0], "x");
    join(t);
    R("recv", recv(ends[1], &c, 1, 0));
    t = asleep("MOD to OUT");
    EP_MOD(ep, ends[1], EPOLLOUT, 2);
    join(t);
    EP_MOD(ep, ends[1], EPOLLIN, 3);
    send_text(fresh[0], "y");
    wait_bytes(fresh[1], 1);
    t = asleep("ADD of a ready one");
    EP_ADD(ep, fresh[1], EPOLLIN, 4);
    join(t);
    R("recv", recv(fresh[1], &c, 1, 0));
    t = asleep("eof");
    close(fresh[0]);
    join(t);
    return 0;
}
