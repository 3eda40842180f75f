// shape: self
// Descriptors closed and duplicated by syscall(2), as libuv closes: the peer hears of it, and the number is free for anything.
#include "case.h"

static void made_of(const char *what, int fd, int ends[2]) {
    T("%s: a descriptor %d", what, fd >= 0);
    send_text(fd, "copy");
    expect_text(what, ends[0], 4);
    syscall(SYS_close, fd);
}

int main(void) {
    case_start();
    int ends[2], pipes[2];
    tcp_pair(AF_INET, ends);
    int number = ends[1];
    made_of("dup", syscall(SYS_dup, ends[1]), ends);
    made_of("dup2", syscall(SYS_dup2, ends[1], 77), ends);
    made_of("dup3", syscall(SYS_dup3, ends[1], 78, O_CLOEXEC), ends);
    made_of("F_DUPFD", syscall(SYS_fcntl, ends[1], F_DUPFD, 40), ends);
    made_of("F_DUPFD_CLOEXEC", syscall(SYS_fcntl, ends[1], F_DUPFD_CLOEXEC, 50), ends);
    T("one descriptor left: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
    R("close", syscall(SYS_close, ends[1]));
    drain("the peer", ends[0]);
    R("send on the number", send(number, "x", 1, MSG_NOSIGNAL));

    // The number goes to something else.
    MUST(pipe(pipes));
    T("the number is the pipe's: %d", pipes[0] == number || pipes[1] == number);
    MUST(write(pipes[1], "through the pipe", 16));
    char text[32] = {0};
    R("read", read(pipes[0], text, sizeof text));
    T("\"%s\"", text);

    // A listener with a connection in its queue, and an epoll instance with a member.
    int listener = make_listener(AF_INET), ep = MUST(epoll_create1(0));
    int client = connect_to(AF_INET, port_of(listener));
    EP_ADD(ep, listener, EPOLLIN, 1);
    ep_show("epoll", ep, WAIT_MS);
    R("close of a listener", syscall(SYS_close, listener));
    ep_show("epoll", ep, QUIET_MS);
    drain("its client", client);

    // A dup2 over a socket is its close.
    tcp_pair(AF_INET6, ends);
    R("dup2 over it", syscall(SYS_dup2, pipes[0], ends[1]) == ends[1]);
    drain("the peer", ends[0]);

    tcp_pair(AF_INET, ends);
    R("close_range", syscall(SYS_close_range, ends[1], ends[1], 0));
    drain("the peer", ends[0]);
    return 0;
}
