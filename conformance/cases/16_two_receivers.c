// shape: self
// Three threads and a child process receive from one socket: every byte comes to exactly one of them.
#include "case.h"

enum { BYTES = 400000 };
static int ends[2];
static uint64_t total, weight;
static void *receiver(void *argument) {
    (void)argument;
    unsigned char block[700];
    ssize_t n;
    while ((n = recv(ends[1], block, sizeof block, 0)) > 0) {
        uint64_t w = 0;
        for (ssize_t i = 0; i < n; i++) w += block[i] + 1;
        __atomic_add_fetch(&total, n, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&weight, w, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

int main(void) {
    case_start();
    tcp_pair(AF_INET, ends);
    int report[2];
    MUST(pipe(report));
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        receiver(NULL);
        uint64_t both[2] = {total, weight};
        MUST(write(report[1], both, sizeof both));
        _exit(0);
    }
    pthread_t t[3];
    for (int i = 0; i < 3; i++) t[i] = start_thread(receiver, NULL);
    static unsigned char block[BYTES];
    fill(block, sizeof block, 8);
    uint64_t expected = 0;
    for (int i = 0; i < BYTES; i++) expected += block[i] + 1;
    for (int i = 0; i < BYTES; i += 1000) MUST(send_all(ends[0], block + i, 1000));
    MUST(shutdown(ends[0], SHUT_WR));
    for (int i = 0; i < 3; i++) join(t[i]);
    uint64_t both[2];
    MUST(read(report[0], both, sizeof both));
    T("bytes %llu, the right ones: %d", (unsigned long long)(total + both[0]), weight + both[1] == expected);
    reap("child", child);
    return 0;
}
