// shape: self
// System calls past libc on a descriptor that libc's socket gave: a guest's fail, each with an errno, and reach nothing.
// expect-guest: connect failed
// expect-guest: write failed
// expect-guest: sendto failed
// expect-guest: sendmsg failed
// expect-guest: read failed
// expect-guest: recvfrom failed
// expect-guest: getpeername failed
// expect-guest: listen failed
// expect-guest: accept4 failed
// expect-guest: the connection still works: "good"
#include "case.h"

static void say(const char *what, long result) { T("%s %s", what, result < 0 ? "failed" : "worked"); }

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), ends[2], fresh = tcp_socket(AF_INET), other = tcp_socket(AF_INET);
    char byte = 'x';
    union address a = loopback(AF_INET, port_of(listener));
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    socklen_t length = sizeof a.in;
    signal(SIGPIPE, SIG_IGN);
    tcp_pair(AF_INET, ends);
    say("connect", syscall(SYS_connect, fresh, &a, sizeof a.in));
    say("write", syscall(SYS_write, ends[0], &byte, 1));
    say("sendto", syscall(SYS_sendto, ends[0], &byte, 1, 0, NULL, 0));
    say("sendmsg", syscall(SYS_sendmsg, ends[0], &m, 0));
    nonblock(ends[1]);
    if (poll1(ends[1], POLLIN, QUIET_MS)) {}
    say("read", syscall(SYS_read, ends[1], &byte, 1));
    say("recvfrom", syscall(SYS_recvfrom, ends[1], &byte, 1, 0, NULL, NULL));
    say("getpeername", syscall(SYS_getpeername, ends[1], &a, &length));
    say("listen", syscall(SYS_listen, other, 4));
    nonblock(listener);
    poll1(listener, POLLIN, QUIET_MS);
    say("accept4", syscall(SYS_accept4, listener, NULL, NULL, 0));
    // What the raw calls moved natively has been read.
    while (recv(ends[1], &byte, 1, 0) == 1) {}
    send_text(ends[0], "good");
    wait_bytes(ends[1], 4);
    expect_text("the connection still works", ends[1], 4);
    return 0;
}
