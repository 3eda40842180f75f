// shape: self
// Forty connections filled to the brim that nobody reads, ten of them reset; a new one is served, then all are drained.
#include "case.h"

enum { COUNT = 40 };
int main(void) {
    case_start();
    static char block[65536];
    static int ends[COUNT][2];
    static size_t sent[COUNT];
    for (int i = 0; i < COUNT; i++) {
        tcp_pair(AF_INET, ends[i]);
        nonblock(ends[i][0]);
        ssize_t n;
        // Up to a MB each, however large the buffers are.
        while (sent[i] < 1 << 20 && (n = send(ends[i][0], block, sizeof block, 0)) > 0) sent[i] += n;
    }
    int fresh[2];
    tcp_pair(AF_INET, fresh);
    send_text(fresh[0], "served");
    expect_text("a new one", fresh[1], 6);
    for (int i = 0; i < 10; i++) close_rst(ends[i][0]), close(ends[i][1]);
    int good = 0;
    for (int i = 10; i < COUNT; i++) {
        MUST(shutdown(ends[i][0], SHUT_WR));
        size_t got = 0;
        ssize_t n;
        while ((n = recv(ends[i][1], block, sizeof block, 0)) > 0) got += n;
        good += n == 0 && got == sent[i];
        close(ends[i][0]);
        close(ends[i][1]);
    }
    T("drained whole: %d", good);
    return 0;
}
