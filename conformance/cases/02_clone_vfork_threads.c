// shape: self
// A child for which the thread that makes it waits (CLONE_VFORK), with memory of its own: the other threads go on meanwhile.
#include "case.h"
#include <pthread.h>
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static int go[2];

static int waits(void *unused __attribute__((unused))) {
    alarm(CASE_ALARM_S);
    char c;
    return read(go[0], &c, 1) == 1 ? 5 : 6;
}

static pid_t make_child(int way) {
    if (way == 0) return clone(waits, stack + sizeof stack, CLONE_VFORK | SIGCHLD, NULL);
    // clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    unsigned long args[8] = {CLONE_VFORK, 0, 0, 0, SIGCHLD, 0, 0, 0};
    long child = way == 1 ? syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) : syscall(SYS_clone3, args, sizeof args);
    if (child == 0) _exit(waits(NULL));
    return child;
}

// The child ends after this thread's descriptors came and went.
static void *other(void *unused __attribute__((unused))) {
    msleep(50);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    close(fd);
    MUST(write(go[1], "g", 1));
    return NULL;
}

int main(void) {
    case_start();
    MUST(pipe(go));
    close(make_listener(AF_INET));
    for (int way = 0; way < 3; way++) {
        pthread_t thread;
        MUST(pthread_create(&thread, NULL, other, NULL));
        pid_t child = MUST(make_child(way));
        pthread_join(thread, NULL);
        reap("child", child);
    }
    return 0;
}
