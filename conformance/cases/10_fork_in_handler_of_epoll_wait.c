// shape: self
// A handler that interrupts epoll_wait forks, and both go on from there, the child once the parent sleeps anew: what comes then wakes
// the parent all the same. Then the same with poll.
#include "case.h"

static pid_t parent;
static volatile pid_t child;

static void handler(int number) {
    (void)number;
    pid_t pid = fork();
    if (pid == 0) {
        alarm(CASE_ALARM_S);
        wait_asleep(parent);
    }
    child = pid;
}

static void *interrupt(void *thread) {
    wait_asleep(parent);
    MUST0(pthread_kill(*(pthread_t *)thread, SIGUSR1));
    return NULL;
}

static int wait_by_epoll(int ep, int fd) {
    struct epoll_event event;
    (void)fd;
    return epoll_wait(ep, &event, 1, -1);
}

static int wait_by_poll(int ep, int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    (void)ep;
    return poll(&p, 1, -1);
}

static void interrupted(const char *what, int (*wait)(int ep, int fd), int ep, int ends[2]) {
    pthread_t self = pthread_self(), other = start_thread(interrupt, &self);
    int n = wait(ep, ends[1]);
    if (child == 0) { // it sends what the parent waits for
        int right = n == -1 && errno == EINTR;
        send_text(ends[0], "x");
        _exit(right);
    }
    T("%s: %d %s", what, n, ename(errno));
    T("%s: again %d", what, wait(ep, ends[1]));
    join(other);
    expect_text(what, ends[1], 1);
    reap("child", child);
}

int main(void) {
    case_start();
    parent = my_tid();
    on_signal(SIGUSR1, handler, 0);
    int ends[2], ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    interrupted("epoll_wait", wait_by_epoll, ep, ends);
    interrupted("poll", wait_by_poll, ep, ends);
    return 0;
}
