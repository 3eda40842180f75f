// shape: self
// Children that share their parent's memory until they exec are killed at any moment of that: the parent goes on as if there had been none.
#include "case.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static char number[16];

static int execs(void *unused __attribute__((unused))) {
    char *argv[] = {"case", number, NULL};
    execv("/proc/self/exe", argv);
    return 99;
}

int main(int argc, char **argv) {
    if (argc > 1) return pause();
    case_start();
    (void)argv;
    int ends[2];
    tcp_pair(AF_INET, ends);
    for (int i = 0; i < 150; i++) {
        pid_t child = MUST(clone(execs, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
        usleep(i * 7919 % 600);
        kill(child, SIGKILL);
        wait_for(child);
    }
    pid_t child = must_fork();
    if (child == 0) {
        send_text(ends[1], "there");
        _exit(5);
    }
    reap("a child", child);
    expect_text("from it", ends[0], 5);
    close(ends[1]);
    drain("and the end", ends[0]);
    return 0;
}
