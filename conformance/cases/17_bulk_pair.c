// shape: pair
// 8 MB each way at once between two programs, blocking, in blocks of many sizes.
#include "case.h"

enum { BYTES = 8 << 20 };
static void both_ways(int fd, uint32_t seed) {
    pid_t sender = must_fork();
    if (sender == 0) {
        static char block[BYTES];
        fill(block, sizeof block, seed);
        for (size_t done = 0, turn = 0; done < BYTES; turn++) {
            size_t want = 1 + (turn * 104729) % 150000;
            if (want > BYTES - done) want = BYTES - done;
            MUST(send_all(fd, block + done, want));
            done += want;
        }
        MUST(shutdown(fd, SHUT_WR));
        _exit(0);
    }
    drain("received", fd);
    reap("sender", sender);
}
static void server_role(int listener) { both_ways(MUST(accept(listener, NULL, NULL)), 81); }
static void client_role(int port) { both_ways(connect_to(AF_INET6, port), 82); }
PAIR_MAIN(AF_INET6)
