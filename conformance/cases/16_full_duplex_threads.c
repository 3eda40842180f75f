// shape: self
// One thread sends and another receives on the same socket, both at full speed, at both ends.
#include "case.h"

enum { BYTES = 4 << 20 };
static int ends[2];
static uint64_t got[2];
static void *sender(void *argument) {
    static char blocks[2][BYTES];
    int which = (long)argument;
    fill(blocks[which], BYTES, 20 + which);
    MUST(send_all(ends[which], blocks[which], BYTES));
    MUST(shutdown(ends[which], SHUT_WR));
    return NULL;
}
static void *receiver(void *argument) {
    int which = (long)argument;
    char block[30000];
    uint64_t s = SUM_START;
    ssize_t n;
    while ((n = recv(ends[which], block, sizeof block, 0)) > 0) s = sum_more(s, block, n);
    got[which] = n == 0 ? s : 0;
    return NULL;
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        tcp_pair(family, ends);
        pthread_t t[4];
        for (long i = 0; i < 2; i++) {
            t[i] = start_thread(sender, (void *)i);
            t[2 + i] = start_thread(receiver, (void *)i);
        }
        for (int i = 0; i < 4; i++) join(t[i]);
        T("%016llx %016llx", (unsigned long long)got[0], (unsigned long long)got[1]);
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
