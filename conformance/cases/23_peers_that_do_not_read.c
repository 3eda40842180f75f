// shape: pair
// So many clients never read that what stands full for them is more than any pool has: a new one is served at once, and who reads again is sent more.
#include "case.h"

enum { SLOW = 160 };
static void server_role(int listener) {
    static char block[65536];
    int slow[SLOW], ep = MUST(epoll_create1(0));
    struct epoll_event e;
    for (int i = 0; i < SLOW; i++) {
        slow[i] = MUST(accept(listener, NULL, NULL));
        MUST(set_int(slow[i], SOL_SOCKET, SO_SNDBUF, 32768));
        nonblock(slow[i]);
    }
    EP_ADD(ep, slow[SLOW - 1], EPOLLOUT | EPOLLET, 1);
    // Until nobody takes more, not even after a while.
    for (int quiet = 0; quiet < 5; quiet++, msleep(10))
        for (int i = 0; i < SLOW; i++)
            while (send(slow[i], block, sizeof block, MSG_NOSIGNAL) > 0) quiet = 0;
    while (epoll_wait(ep, &e, 1, 0) > 0) {}
    while (send(slow[SLOW - 1], block, sizeof block, MSG_NOSIGNAL) > 0) {}
    T("all stand full: %s", ename(errno));
    tell("full");
    int fresh = MUST(accept(listener, NULL, NULL));
    nonblock(fresh);
    T("a new one: %s", mask(wait_mask(fresh, POLLOUT, POLLOUT)));
    R("send", send(fresh, "served", 6, 0));
    expect_text("answer", fresh, 6);
    tell("read-now");
    ep_show("the last", ep, WAIT_MS);
    T("send: %s", send(slow[SLOW - 1], block, sizeof block, MSG_NOSIGNAL) > 0 ? "takes some" : ename(errno));
}
static void client_role(int port) {
    int slow[SLOW];
    for (int i = 0; i < SLOW; i++) slow[i] = connect_with_little_room(port);
    await("full");
    int fresh = connect_to(AF_INET, port);
    expect_text("a new one", fresh, 6);
    send_text(fresh, "thanks");
    await("read-now");
    static char block[65536];
    ssize_t n;
    while ((n = recv(slow[SLOW - 1], block, sizeof block, 0)) > 0) {}
    T("the last reads to the end: %zd", n);
}
PAIR_MAIN(AF_INET)
