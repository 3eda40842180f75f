// shape: self
// A reset at close, for unread bytes or by SO_LINGER, comes behind what was written before: the peer reads that, then ECONNRESET.
#include "case.h"

enum how { CLOSES, LINGERS_NOT, EXITS, IS_KILLED, HOWS };
static const char *names[] = {"close", "close with SO_LINGER 0", "exit", "kill"};
#define TIMES 25

static void answer(int fd, size_t bytes) {
    static char block[30000];
    fill(block, sizeof block, 3);
    MUST(send_all(fd, block, bytes));
}

// What the peer of one that ends this way gets of what it wrote last: the bytes, and how it ends.
static size_t one(enum how how, size_t bytes, const char **end) {
    int ends[2];
    static char got[30000];
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "question that nobody reads");
    wait_bytes(ends[1], 26);
    pid_t child = how >= EXITS ? must_fork() : 0;
    if (child == 0) {
        if (how == LINGERS_NOT) {
            answer(ends[1], bytes);
            close_rst(ends[1]);
        } else {
            answer(ends[1], bytes);
            if (how == EXITS) _exit(0);
            if (how == IS_KILLED) raise(SIGKILL);
            close(ends[1]);
        }
    } else {
        close(ends[1]);
        wait_for(child);
    }
    wait_mask(ends[0], ALL_EVENTS, POLLHUP);
    size_t n = 0;
    ssize_t r;
    while ((r = recv(ends[0], got + n, sizeof got - n, 0)) > 0) n += r;
    *end = r == 0 ? "EOF" : ename(errno);
    close(ends[0]);
    return n;
}

int main(void) {
    case_start();
    static const size_t sizes[] = {6, 30000};
    for (int how = CLOSES; how < HOWS; how++)
        for (int s = 0; s < 2; s++) {
            int whole = 0, reset = 0;
            for (int i = 0; i < TIMES; i++) {
                const char *end = "";
                whole += one(how, sizes[s], &end) == sizes[s];
                reset += !strcmp(end, "ECONNRESET");
            }
            T("%s, %zu bytes: whole %d of %d, reset %d", names[how], sizes[s], whole, TIMES, reset);
        }
    return 0;
}
