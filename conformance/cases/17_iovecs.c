// shape: self
// writev and readv with up to IOV_MAX parts of odd sizes, one part too many, and preadv.
#include "case.h"

enum { PARTS = 1024 };
int main(void) {
    case_start();
    int ends[2];
    static char out[PARTS * 40], in[PARTS * 40];
    static struct iovec v[PARTS + 1], w[PARTS];
    fill(out, sizeof out, 61);
    size_t at = 0, back = 0;
    for (int i = 0; i < PARTS; i++) {
        v[i] = (struct iovec){out + at, i % 40};
        w[PARTS - 1 - i] = (struct iovec){NULL, i % 40};
        at += i % 40;
    }
    for (int i = 0; i < PARTS; i++) {
        w[i].iov_base = in + back;
        back += w[i].iov_len;
    }
    tcp_pair(AF_INET, ends);
    R("writev", writev(ends[0], v, PARTS));
    T("there %d", wait_bytes(ends[1], at));
    R("readv", readv(ends[1], w, PARTS));
    T("the same %d", !memcmp(out, in, at));
    R("one part too many", writev(ends[0], v, PARTS + 1));
    R("no part, negative", writev(ends[0], v, -1));
    R("readv, too many", readv(ends[1], v, PARTS + 1));
    R("preadv", preadv(ends[1], w, 1, 0));
    R("pwritev", pwritev(ends[0], v, 2, 0));
    R("writev of few bytes", writev(ends[0], v + 1, 3));
    MUST(shutdown(ends[0], SHUT_WR));
    drain("rest", ends[1]);
    return 0;
}
