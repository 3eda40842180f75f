// shape: self
// An epoll made before fork, with a listener, a connection and a pipe in it, serves every worker that inherits it: each is told
// of each, and what one worker adds for itself disturbs nobody.
#include "case.h"

enum { WORKERS = 3 };

static void worker(int ep, int out, struct gate go) {
    ep_show("worker: all three", ep, WAIT_MS);
    // One that waits already when something comes.
    int own = make_listener(AF_INET);
    EP_ADD(ep, own, EPOLLIN, 4);
    int client = connect_to(AF_INET, port_of(own));
    struct epoll_event events[8];
    int n, tries = 0, seen = 0;
    // The others are ready all the time, so each look returns at once: the connection may take longer than many of them.
    do {
        if (tries) msleep(1);
        n = epoll_wait(ep, events, 8, WAIT_MS);
        for (int i = 0; i < n; i++) seen |= 1 << events[i].data.u32;
    } while (!(seen & 1 << 4) && ++tries < 1000);
    T("worker: its own as well %d", !!(seen & 1 << 4));
    close(client);
    close(own);
    MUST(write(out, "d", 1));
    gate_wait(go);
    _exit(0);
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), ends[2], news[2], done[2];
    tcp_pair(AF_INET, ends);
    MUST(pipe(news));
    MUST(pipe(done));
    int ep = MUST(epoll_create1(0));
    EP_ADD(ep, listener, EPOLLIN, 1);
    EP_ADD(ep, ends[1], EPOLLIN, 2);
    EP_ADD(ep, news[0], EPOLLIN, 3);
    int client = connect_to(AF_INET, port_of(listener));
    send_text(ends[0], "x");
    MUST(write(news[1], "x", 1));
    wait_mask(listener, POLLIN, POLLIN);
    wait_mask(ends[1], POLLIN, POLLIN);
    for (int i = 0; i < WORKERS; i++) {
        struct gate go = make_gate();
        pid_t child = must_fork();
        if (child == 0) worker(ep, done[1], go);
        char c;
        MUST(read(done[0], &c, 1));
        gate_open(go);
        reap("worker", child);
    }
    ep_show("parent", ep, WAIT_MS);
    close(client);
    return 0;
}
