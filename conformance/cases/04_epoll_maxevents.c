// shape: self
// Few slots and many ready sockets: level-triggered ones take turns, edge-triggered ones come once each.
#include "case.h"

#define COUNT 12

static void look(uint32_t how) {
    int ends[COUNT][2], ep = MUST(epoll_create1(0)), all = MUST(epoll_create1(0)), seen[COUNT] = {0};
    for (int i = 0; i < COUNT; i++) {
        tcp_pair(AF_INET, ends[i]);
        EP_ADD(ep, ends[i][1], EPOLLIN | how, i);
        EP_ADD(all, ends[i][1], EPOLLIN, i);
    }
    for (int i = 0; i < COUNT; i++) {
        send_text(ends[i][0], "x");
        wait_bytes(ends[i][1], 1);
    }
    // Who was added first is told first: when `all` knows of every socket, so does `ep`.
    struct epoll_event every[COUNT];
    for (int64_t end = now_ms() + WAIT_MS; epoll_wait(all, every, COUNT, WAIT_MS) < COUNT && now_ms() < end;) msleep(1);
    for (int k = 0; k < COUNT / 3; k++) {
        struct epoll_event e[3];
        int n = epoll_wait(ep, e, 3, WAIT_MS);
        T("%d", n);
        for (int i = 0; i < n; i++) seen[e[i].data.u64]++;
    }
    int once = 0;
    for (int i = 0; i < COUNT; i++) once += seen[i] == 1;
    T("seen once each: %d", once);
    if (how) EP_QUIET("no more", ep);
    for (int i = 0; i < COUNT; i++) close(ends[i][0]), close(ends[i][1]);
    close(ep), close(all);
}

int main(void) {
    case_start();
    look(0);
    look(EPOLLET);
    return 0;
}
