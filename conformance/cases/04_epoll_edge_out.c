// shape: self
// EPOLLOUT with EPOLLET: at ADD, then only after EAGAIN and room again.
#include "case.h"

static void *reader(void *argument) {
    static char sink[65536];
    size_t total = 0, wanted = *(size_t *)((void **)argument)[1];
    while (total < wanted) {
        ssize_t n = recv(*(int *)((void **)argument)[0], sink, sizeof sink, 0);
        if (n <= 0) break;
        total += n;
    }
    return NULL;
}

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    nonblock(ends[0]);
    small_buffers(ends[0], ends[1]);
    EP_ADD(ep, ends[0], EPOLLIN | EPOLLOUT | EPOLLET, 1);
    ep_show("at ADD", ep, WAIT_MS);
    EP_QUIET("once", ep);
    for (int round = 0; round < 3; round++) {
        size_t sent = fill_up(ends[0]);
        T("full: %s", mask(poll1(ends[0], POLLOUT, 0)));
        // Nothing is claimed about edges while it filled; from full on there is none until there is room.
        struct epoll_event e;
        while (epoll_wait(ep, &e, 1, 0) > 0) {}
        EP_QUIET("full", ep);
        void *argument[2] = {&ends[1], &sent};
        pthread_t t = start_thread(reader, argument);
        ep_show("room", ep, WAIT_MS);
        join(t);
        T("writable: %s", mask(wait_mask(ends[0], POLLOUT, POLLOUT)));
        while (epoll_wait(ep, &e, 1, QUIET_MS) > 0) {}
        EP_QUIET("room once", ep);
    }
    return 0;
}
