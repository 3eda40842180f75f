// shape: self
// Every event mask of a connection's life, at both ends.
#include "case.h"

static void both(const char *what, int ends[2], uint32_t want0, uint32_t want1) {
    const char *a = mask(wait_mask(ends[0], ALL_EVENTS, want0));
    T("%s: %s / %s", what, a, mask(wait_mask(ends[1], ALL_EVENTS, want1)));
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        tcp_pair(family, ends);
        both("fresh", ends, POLLOUT, POLLOUT);
        send_text(ends[0], "x");
        both("data", ends, POLLOUT, POLLIN);
        MUST(shutdown(ends[0], SHUT_WR));
        both("one shut", ends, POLLOUT, POLLRDHUP);
        MUST(shutdown(ends[1], SHUT_WR));
        both("both shut", ends, POLLHUP, POLLHUP);
        T("SO_ERROR %s / %s", so_error(ends[0]), so_error(ends[1]));
        expect_text("the data is still there", ends[1], 1);
        close(ends[0]);
        both("one closed", (int[]){ends[1], ends[1]}, POLLHUP, POLLHUP);
        close(ends[1]);

        tcp_pair(family, ends);
        MUST(shutdown(ends[1], SHUT_RD));
        both("SHUT_RD", ends, POLLOUT, POLLRDHUP);
        MUST(shutdown(ends[1], SHUT_WR));
        both("and SHUT_WR", ends, POLLRDHUP, POLLHUP);
        close(ends[0]);
        close(ends[1]);

        tcp_pair(family, ends);
        close_rst(ends[0]);
        both("reset", (int[]){ends[1], ends[1]}, POLLHUP | POLLERR, POLLHUP | POLLERR);
        T("SO_ERROR %s", so_error(ends[1]));
        both("error read", (int[]){ends[1], ends[1]}, POLLHUP, POLLHUP);
        T("SO_ERROR %s", so_error(ends[1]));
        close(ends[1]);
    }
    return 0;
}
