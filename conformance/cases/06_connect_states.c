// shape: self
// Calls on a fresh socket, on one that is still connecting (its listener's backlog is full), and once it is through.
#include "case.h"

int main(void) {
    case_start();
    int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    char c;
    T("fresh: %s", mask(poll1(fd, ALL_EVENTS, 0)));
    R("recv", recv(fd, &c, 1, 0));
    R("send", send(fd, "x", 1, MSG_NOSIGNAL));
    R("shutdown", shutdown(fd, SHUT_RDWR));
    T("SO_ERROR %s", so_error(fd));
    close(fd);

    int listener = make_listener_n(AF_INET, 1), port = port_of(listener), fds[16], count = 0;
    do { // until one is not let in
        fds[count] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        connect_fd(fds[count], AF_INET, port);
    } while ((poll1(fds[count++], POLLOUT, 300) & POLLOUT) && count < 16);
    T("some were let in, one was not: %d", count > 1 && count < 16);
    fd = fds[count - 1];
    T("connecting: %s", mask(poll1(fd, ALL_EVENTS, 0)));
    R("connect", connect_fd(fd, AF_INET, port));
    R("recv", recv(fd, &c, 1, 0));
    R("send", send(fd, "x", 1, MSG_NOSIGNAL));
    T("SO_ERROR %s", so_error(fd));
    union address a;
    socklen_t length = sizeof a;
    R("getpeername", getpeername(fd, &a.sa, &length));
    R("listen", listen(fd, 1));
    for (int i = 0; i < count - 1; i++) close(MUST(accept(listener, NULL, NULL)));
    T("let in now: %s", mask(wait_mask(fd, POLLOUT, POLLOUT)));
    R("connect", connect_fd(fd, AF_INET, port));
    int taken = RF("accept", accept(listener, NULL, NULL));
    send_text(fd, "x");
    expect_text("server", taken, 1);
    return 0;
}
