// shape: self
// Children that are made neither by fork nor by number: clone with a function and memory of its own, and forkpty. The parent closes at
// once what the child serves, and the child has its own signal mask and variables.
// cc: -lutil
#include "case.h"
#include <pty.h>
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static int listener, fd, variable;

static int serve(void *late) {
    alarm(CASE_ALARM_S);
    sigset_t mask;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    int masked = sigismember(&mask, SIGUSR1) * 2 + sigismember(&mask, SIGUSR2);
    variable = 1;
    close(listener);
    if (late) msleep(20);
    char line[16];
    ssize_t n = recv(fd, line, sizeof line, 0);
    if (n > 0) send(fd, line, n, 0);
    return masked;
}

static pid_t make_child(int way) {
    int terminal;
    switch (way) {
    case 0:
    case 1: return clone(serve, stack + sizeof stack, SIGCHLD, way ? &variable : NULL);
    case 2: return clone(serve, stack + sizeof stack, CLONE_VFORK | SIGCHLD, NULL);
    default: break;
    }
    pid_t child = forkpty(&terminal, NULL, NULL, NULL);
    if (child == 0) {
        close(terminal);
        _exit(isatty(0) ? serve(&variable) : 9);
    }
    return child;
}

int main(void) {
    case_start();
    listener = make_listener(AF_INET);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    for (int way = 0; way < 4; way++) {
        int client = connect_to(AF_INET, port_of(listener));
        fd = MUST(accept(listener, NULL, NULL));
        if (way == 2) send_text(client, "hello");
        pid_t child = MUST(make_child(way));
        close(fd);
        if (way != 2) send_text(client, "hello");
        expect_text("echo", client, 5);
        drain("echo", client);
        reap("child", child);
        T("the parent's variable: %d", variable);
        close(client);
    }
    R("a clone that fails", clone(serve, stack + sizeof stack, CLONE_SIGHAND | SIGCHLD, NULL));
    int client = connect_to(AF_INET, port_of(listener));
    RF("the listener is there", accept(listener, NULL, NULL));
    close(client);
    return 0;
}
