// shape: self
// As asyncio and nginx do: a handler writes to a socketpair in the same epoll, epoll_wait gives EINTR or the event.
#include "case.h"

static int wake[2];
static void handler(int number) {
    (void)number;
    int error = errno;
    if (write(wake[1], "s", 1) != 1) _exit(9);
    errno = error;
}

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    char c;
    tcp_pair(AF_INET, ends);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, wake));
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    EP_ADD(ep, wake[0], EPOLLIN, 2);
    on_signal(SIGCHLD, handler, SA_RESTART);
    pid_t parent = getpid(), child = must_fork();
    if (child == 0) {
        wait_asleep(parent);
        _exit(5);
    }
    struct epoll_event e;
    R("epoll_wait", epoll_wait(ep, &e, 1, -1));
    ep_show("then", ep, WAIT_MS);
    R("read", read(wake[0], &c, 1));
    reap("child", child);
    send_text(ends[0], "x");
    ep_show("data", ep, WAIT_MS);
    // A tick by timer during a long blocking receive that restarts: no byte is lost or doubled.
    signal(SIGCHLD, SIG_IGN);
    return 0;
}
