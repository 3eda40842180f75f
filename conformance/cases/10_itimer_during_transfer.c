// shape: self
// A profiler's timer fires all through a transfer of some MB both ways: nothing is lost, doubled or cut.
#include "case.h"
#include <sys/time.h>

static volatile sig_atomic_t ticks;
static void tick(int number) {
    (void)number;
    ticks++;
}

#define BYTES (3 << 20)

int main(void) {
    case_start();
    int ends[2];
    static char block[BYTES], back[BYTES];
    tcp_pair(AF_INET, ends);
    fill(block, sizeof block, 11);
    for (int restart = 0; restart < 2; restart++) {
        on_signal(SIGALRM, tick, restart ? SA_RESTART : 0);
        pid_t child = must_fork();
        if (child == 0) {
            signal(SIGALRM, SIG_DFL);
            for (size_t done = 0; done < BYTES;) {
                ssize_t n = recv(ends[1], back, 65536, 0);
                if (n <= 0) _exit(1);
                if (send_all(ends[1], back, n) != n) _exit(2);
                done += n;
            }
            _exit(0);
        }
        struct itimerval fast = {{0, 2000}, {0, 2000}}, off = {{0, 0}, {0, 0}};
        MUST(setitimer(ITIMER_REAL, &fast, NULL));
        size_t sent = 0, got = 0;
        while (got < BYTES) {
            if (sent < BYTES) {
                size_t want = BYTES - sent < 20000 ? BYTES - sent : 20000;
                MUST(send_all(ends[0], block + sent, want));
                sent += want;
            }
            ssize_t n = recv(ends[0], back + got, 20000, sent < BYTES ? MSG_DONTWAIT : 0);
            if (n > 0) got += n;
            if (n == 0) break;
        }
        setitimer(ITIMER_REAL, &off, NULL);
        T("got %zu, the same: %d", got, !memcmp(block, back, BYTES));
        T("ticks came: %d", ticks > 0);
        reap("echo", child);
    }
    return 0;
}
