// shape: self
// Parent and child share one connection: reads take turns in one stream, writes arrive in order.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    struct gate to_child = make_gate(), to_parent = make_gate();
    send_text(ends[0], "aaaabbbbccccdddd");
    pid_t child = must_fork();
    if (child == 0) {
        for (int i = 0; i < 2; i++) {
            gate_wait(to_child);
            expect_text("child", ends[1], 4);
            send_text(ends[1], "<child>");
            gate_open(to_parent);
        }
        _exit(0);
    }
    for (int i = 0; i < 2; i++) {
        expect_text("parent", ends[1], 4);
        send_text(ends[1], "<parent>");
        gate_open(to_child);
        gate_wait(to_parent);
    }
    reap("child", child);
    expect_text("peer", ends[0], 30);
    // O_NONBLOCK is the socket's, also across processes.
    child = must_fork();
    if (child == 0) {
        nonblock(ends[1]);
        _exit(0);
    }
    reap("child", child);
    char c;
    T("O_NONBLOCK set by the child: %d", !!(fcntl(ends[1], F_GETFL) & O_NONBLOCK));
    R("recv", recv(ends[1], &c, 1, 0));
    return 0;
}
