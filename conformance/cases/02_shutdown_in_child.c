// shape: self
// shutdown in a child hits the socket in every process, at once, unlike close.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        R("child shutdown", shutdown(ends[1], SHUT_WR));
        _exit(0);
    }
    reap("child", child);
    drain("peer", ends[0]);
    R("parent send", send(ends[1], "x", 1, MSG_NOSIGNAL));
    send_text(ends[0], "still reads");
    expect_text("parent", ends[1], 11);
    child = must_fork();
    if (child == 0) {
        R("child shutdown", shutdown(ends[1], SHUT_RDWR));
        _exit(0);
    }
    reap("child", child);
    char c;
    R("parent recv", recv(ends[1], &c, 1, 0));
    T("parent %s", mask(wait_mask(ends[1], ALL_EVENTS, POLLHUP)));
    return 0;
}
