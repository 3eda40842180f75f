// shape: self
// Several threads send on one socket and several receive on another: each datagram comes once, and whole.
#include "udp.h"

#define SENDERS 3
#define RECEIVERS 3
#define EACH 300
static int ends[2];
static int seen[SENDERS * EACH];
static int torn;
static struct { int number, length; unsigned char rest[20000]; } end = {.number = -1, .length = 8};

static void *sender(void *argument) {
    struct { int number, length; unsigned char rest[20000]; } d;
    for (int i = 0; i < EACH; i++) {
        d.number = (int)(long)argument * EACH + i;
        d.length = 8 + (d.number * 37) % (i % 50 ? 1000 : 19000);
        memset(d.rest, d.number & 0xff, d.length - 8);
        MUST(send(ends[0], &d, d.length, 0));
        // The receivers must keep up: what does not fit is dropped, natively too.
        while (__atomic_load_n(&seen[d.number], __ATOMIC_ACQUIRE) == 0) sched_yield();
    }
    return NULL;
}
static void *receiver(void *argument) {
    struct { int number, length; unsigned char rest[20000]; } d;
    (void)argument;
    for (;;) {
        ssize_t n = MUST(recv(ends[1], &d, sizeof d, 0));
        if (d.number < 0) return NULL;
        bool whole = n == d.length && d.number < SENDERS * EACH;
        for (int i = 0; whole && i < n - 8; i++) whole = d.rest[i] == (d.number & 0xff);
        if (!whole) __atomic_add_fetch(&torn, 1, __ATOMIC_SEQ_CST);
        else __atomic_add_fetch(&seen[d.number], 1, __ATOMIC_SEQ_CST);
    }
}

int main(void) {
    case_start();
    udp_pair(AF_INET, ends);
    pthread_t senders[SENDERS], receivers[RECEIVERS];
    for (long i = 0; i < RECEIVERS; i++) receivers[i] = start_thread(receiver, NULL);
    for (long i = 0; i < SENDERS; i++) senders[i] = start_thread(sender, (void *)i);
    for (int i = 0; i < SENDERS; i++) join(senders[i]);
    for (int i = 0; i < RECEIVERS; i++) MUST(send(ends[0], &end, 8, 0));
    for (int i = 0; i < RECEIVERS; i++) join(receivers[i]);
    int once = 0;
    for (int i = 0; i < SENDERS * EACH; i++) once += seen[i] == 1;
    T("once %d of %d, torn %d", once, SENDERS * EACH, torn);
    return 0;
}
