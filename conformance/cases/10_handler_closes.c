// shape: self
// close() of another socket in a handler while recv is blocked, and siglongjmp out of a blocked recv.
#include "case.h"
#include <setjmp.h>

static int victim;
static sigjmp_buf out;
static void closes(int number) {
    (void)number;
    close(victim);
}
static void jumps(int number) {
    (void)number;
    siglongjmp(out, 1);
}

int main(void) {
    case_start();
    int ends[2], other[2];
    char c;
    tcp_pair(AF_INET, ends);
    tcp_pair(AF_INET, other);
    victim = other[1];
    on_signal(SIGUSR1, closes, SA_RESTART);
    on_signal(SIGUSR2, jumps, 0);
    pid_t parent = getpid(), child = must_fork();
    if (child == 0) {
        close(other[1]);
        wait_asleep(parent);
        kill(parent, SIGUSR1);
        drain("closed in the handler", other[0]);
        wait_asleep(parent);
        send_text(ends[0], "x");
        _exit(0);
    }
    R("recv", recv(ends[1], &c, 1, 0));
    reap("child", child);
    R("the handler closed it", fcntl(victim, F_GETFD));
    child = must_fork();
    if (child == 0) {
        wait_asleep(parent);
        kill(parent, SIGUSR2);
        _exit(0);
    }
    if (sigsetjmp(out, 1) == 0) {
        R("recv", recv(ends[1], &c, 1, 0));
    } else {
        T("jumped out");
    }
    reap("child", child);
    send_text(ends[0], "y");
    R("recv works after it", recv(ends[1], &c, 1, 0));
    send_text(ends[1], "z");
    expect_text("peer", ends[0], 1);
    return 0;
}
