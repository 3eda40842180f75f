// shape: self
// SO_RCVTIMEO and SO_SNDTIMEO: EAGAIN after the time, not early; EINTR by a handler even with SA_RESTART.
#include "case.h"

static void handler(int number) { (void)number; }

static void timed(const char *what, long result, int64_t begun, int least_ms) {
    int error = errno;
    int64_t took = now_ms() - begun;
    errno = error;
    R(what, result);
    T("in its time: %d", took >= least_ms && took < 5000);
}

int main(void) {
    case_start();
    int ends[2], listener = make_listener(AF_INET);
    char c;
    static char block[1 << 20];
    tcp_pair(AF_INET, ends);
    small_buffers(ends[0], ends[1]);
    struct timeval limit = {0, 120000}, back;
    socklen_t length = sizeof back;
    R("SO_RCVTIMEO", setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    MUST(getsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &back, &length));
    T("reads back %ld s, about 120 ms: %d", (long)back.tv_sec, back.tv_usec >= 120000 && back.tv_usec < 130000);
    int64_t begun = now_ms();
    timed("recv", recv(ends[1], &c, 1, 0), begun, 118);
    begun = now_ms();
    timed("read", read(ends[1], &c, 1), begun, 118);
    MUST(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    begun = now_ms();
    timed("accept", accept(listener, NULL, NULL), begun, 118);
    MUST(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    fill_up(ends[0]);
    blocking(ends[0]);
    ssize_t n;
    do begun = now_ms(), n = send(ends[0], block, sizeof block, 0); // a little may go in yet
    while (n > 0);
    timed("send", n, begun, 118);
    send_text(ends[1], "x");
    R("the other direction", recv(ends[0], &c, 1, 0));
    limit.tv_usec = 1000000;
    R("a wrong time", setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    R("short", setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &limit, 4));

    int other[2];
    tcp_pair(AF_INET, other);
    limit = (struct timeval){8, 0};
    MUST(setsockopt(other[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    on_signal(SIGUSR1, handler, SA_RESTART);
    pid_t parent = getpid(), child = must_fork();
    if (child == 0) {
        wait_asleep(parent);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    begun = now_ms();
    timed("recv with a handler", recv(other[1], &c, 1, 0), begun, 0);
    reap("child", child);
    limit = (struct timeval){0, 0};
    MUST(setsockopt(other[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    send_text(other[0], "y");
    R("no limit again", recv(other[1], &c, 1, 0));
    return 0;
}
