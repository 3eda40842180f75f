// shape: self
// One thread sleeps in epoll_wait, another looks at the same epoll with a time of 0 and may take what would have woken the first:
// what comes next wakes the one that sleeps. A descriptor of the kernel is among the members, so that the look asks the kernel too.
#include "case.h"

enum { ROUNDS = 1500 };
static int ep, ours[2], theirs[2], served[2], stop, firsts;

// Takes what is there; only a byte of the second socket counts.
static void take(int max_ms, int counts) {
    struct epoll_event e[2];
    int n = epoll_wait(ep, e, 2, max_ms);
    for (int i = 0; i < n; i++) {
        char c;
        if (recv(ours[e[i].data.u64], &c, 1, MSG_DONTWAIT) != 1) continue;
        if (e[i].data.u64 == 0) __atomic_add_fetch(&firsts, 1, __ATOMIC_SEQ_CST);
        else if (counts) MUST(write(served[1], &c, 1));
    }
}
static void *sleeper(void *nothing) {
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) take(WAIT_MS, 1);
    return nothing;
}
int main(void) {
    case_start();
    int quiet[2], woken = 0;
    MUST(pipe(served));
    MUST(pipe(quiet));
    ep = MUST(epoll_create1(0));
    for (int i = 0; i < 2; i++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        ours[i] = ends[0], theirs[i] = ends[1];
        EP_ADD(ep, ours[i], EPOLLIN | EPOLLET, i);
    }
    EP_ADD(ep, quiet[0], EPOLLIN, 7);
    pthread_t thread;
    if (pthread_create(&thread, NULL, sleeper, NULL) != 0) return 1;
    for (int round = 0; round < ROUNDS; round++) {
        send_text(theirs[0], "a");
        // Until one of the two has it.
        for (int i = 0; i < 100000 && __atomic_load_n(&firsts, __ATOMIC_SEQ_CST) == round; i++) take(0, 0);
        send_text(theirs[1], "b");
        struct pollfd p = {served[0], POLLIN, 0};
        if (poll(&p, 1, WAIT_MS) != 1) break;
        char c;
        MUST(read(served[0], &c, 1));
        woken++;
    }
    T("woken: %d", woken);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    send_text(theirs[1], "b");
    pthread_join(thread, NULL);
    return 0;
}
