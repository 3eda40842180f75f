// shape: self
// A non-blocking sender and a slow reader: short writes, EAGAIN, EPOLLOUT, and every byte in its place.
#include "case.h"

// More than any path holds, and the reader begins when the sender is full: however fast it would read, EAGAIN comes.
enum { BYTES = 16 << 20 };
int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    small_buffers(ends[0], ends[1]);
    int full[2];
    MUST(pipe(full));
    pid_t reader = must_fork();
    if (reader == 0) {
        char c;
        static char block[60000];
        uint64_t s = SUM_START;
        size_t total = 0;
        ssize_t n;
        close(ends[0]);
        close(full[1]);
        MUST(read(full[0], &c, 1));
        for (int turn = 0; (n = recv(ends[1], block, 1 + (turn * 7919) % sizeof block, 0)) > 0; turn++) {
            s = sum_more(s, block, n);
            total += n;
            if (turn % 16 == 0) msleep(2);
        }
        T("reader: %zu bytes, sum %016llx, then %zd", total, (unsigned long long)s, n);
        _exit(0);
    }
    close(ends[1]);
    static char block[BYTES];
    fill(block, sizeof block, 71);
    nonblock(ends[0]);
    EP_ADD(ep, ends[0], EPOLLOUT | EPOLLET, 1);
    size_t done = 0;
    int again = 0;
    while (done < BYTES) {
        struct iovec v[2] = {{block + done, (BYTES - done) / 3}, {block + done + (BYTES - done) / 3, 0}};
        v[1].iov_len = BYTES - done - v[0].iov_len;
        ssize_t n = writev(ends[0], v, 2);
        if (n > 0) {
            done += n;
            continue;
        }
        if (errno != EAGAIN) MUST(-1);
        if (again++ == 0) close(full[1]);
        struct epoll_event e;
        if (epoll_wait(ep, &e, 1, WAIT_MS) != 1) {
            T("no room in %d ms", WAIT_MS);
            break;
        }
    }
    if (again == 0) close(full[1]);
    T("sum %016llx, met EAGAIN: %d", (unsigned long long)sum(block, sizeof block), again > 0);
    close(ends[0]);
    reap("reader", reader);
    return 0;
}
