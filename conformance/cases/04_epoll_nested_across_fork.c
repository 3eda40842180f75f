// shape: self
// An epoll in an epoll crosses fork: the child is woken by what comes on the connection in the inner one, whichever of the two it waits on and
// however, and so is the parent after it.
#include "case.h"

enum { EVENTS = 12 };

static int outer, inner;

// Waits in one of six ways; whether there was something.
static int wait_somehow(int how) {
    struct epoll_event event;
    fd_set set;
    int fd = how & 1 ? inner : outer;
    switch (how % 6) {
    case 0:
    case 1: return epoll_wait(fd, &event, 1, -1) == 1 && event.data.u32 == (how & 1 ? 1 : 2);
    case 2:
    case 3: return poll1(fd, POLLIN, -1) == POLLIN;
    default:
        FD_ZERO(&set);
        FD_SET(fd, &set);
        return select(fd + 1, &set, NULL, NULL, NULL) == 1;
    }
}

static void wait_for_all(const char *who, int from) {
    int woken = 0;
    for (int i = 0; i < EVENTS; i++) {
        char c;
        if (wait_somehow(i)) woken += recv(from, &c, 1, MSG_DONTWAIT) == 1;
    }
    T("%s: woken %d times", who, woken);
}

int main(void) {
    case_start();
    int ends[2];
    outer = MUST(epoll_create1(EPOLL_CLOEXEC));
    inner = MUST(epoll_create1(EPOLL_CLOEXEC));
    tcp_pair(AF_INET, ends);
    EP_ADD(inner, ends[1], EPOLLIN, 1);
    EP_ADD(outer, inner, EPOLLIN, 2);
    ep_show("nothing yet", inner, 0);
    pid_t child = must_fork();
    if (child == 0) {
        wait_for_all("child", ends[1]);
        _exit(0);
    }
    struct one_by_one each = {ends[0], ends[1], EVENTS, child};
    send_one_by_one(&each);
    reap("child", child);
    each.waiter = my_tid();
    pthread_t sender = start_thread(send_one_by_one, &each);
    wait_for_all("parent", ends[1]);
    join(sender);
    return 0;
}
