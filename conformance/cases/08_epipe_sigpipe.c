// shape: self
// Writing where nobody reads: EPIPE with SIGPIPE, without it by MSG_NOSIGNAL or SIG_IGN; death by default.
#include "case.h"

static volatile sig_atomic_t pipes;
static void count(int number) {
    (void)number;
    pipes++;
}

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    on_signal(SIGPIPE, count, 0);
    close(ends[1]);
    wait_mask(ends[0], ALL_EVENTS, POLLRDHUP);
    R("first send", send(ends[0], "x", 1, 0));
    T("mask %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLHUP)));
    struct iovec v = {"x", 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    R("send", send(ends[0], "x", 1, 0));
    T("signals %d", pipes);
    R("send MSG_NOSIGNAL", send(ends[0], "x", 1, MSG_NOSIGNAL));
    R("sendmsg MSG_NOSIGNAL", sendmsg(ends[0], &m, MSG_NOSIGNAL));
    T("signals %d", pipes);
    R("write", write(ends[0], "x", 1));
    T("signals %d", pipes);
    R("writev", writev(ends[0], &v, 1));
    T("signals %d", pipes);
    R("sendmsg", sendmsg(ends[0], &m, 0));
    T("signals %d", pipes);
    R("sendto", sendto(ends[0], "x", 1, 0, NULL, 0));
    T("signals %d", pipes);
    signal(SIGPIPE, SIG_IGN);
    R("write, ignored", write(ends[0], "x", 1));
    close(ends[0]);

    tcp_pair(AF_INET, ends);
    MUST(shutdown(ends[0], SHUT_WR));
    on_signal(SIGPIPE, count, 0);
    R("write after SHUT_WR", write(ends[0], "x", 1));
    T("signals %d", pipes);
    R("write of nothing after SHUT_WR", write(ends[0], "", 0));
    T("signals %d", pipes);

    pid_t child = must_fork();
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        MUST(write(ends[0], "x", 1));
        _exit(0);
    }
    reap("child", child);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    R("write, blocked", write(ends[0], "x", 1));
    sigset_t waiting;
    sigpending(&waiting);
    T("pending %d, handled %d", sigismember(&waiting, SIGPIPE), pipes);
    return 0;
}
