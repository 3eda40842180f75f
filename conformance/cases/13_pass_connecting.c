// shape: self
// A fresh, a bound and a connecting socket are handed over, and used there; so are their flags.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    int channel[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
    int listener = make_listener(AF_INET), port = port_of(listener);
    pid_t child = must_fork();
    if (child == 0) {
        int fresh = scm_receive(channel[1]), bound = scm_receive(channel[1]), connecting = scm_receive(channel[1]);
        R("fresh: connect", connect_fd(fresh, AF_INET, port));
        send_text(fresh, "fresh");
        R("bound: listen", listen(bound, 4));
        T("bound: the port is there: %d", port_of(bound) > 0);
        T("connecting: %s, nonblock %d", mask(wait_mask(connecting, ALL_EVENTS, POLLOUT)),
          !!(fcntl(connecting, F_GETFL) & O_NONBLOCK));
        T("SO_ERROR %s", so_error(connecting));
        send_text(connecting, "async");
        tell("done");
        await("checked");
        _exit(0);
    }
    int fresh = tcp_socket(AF_INET), bound = tcp_socket(AF_INET);
    int connecting = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    MUST(bind_to(bound, AF_INET, 0));
    connect_fd(connecting, AF_INET, port);
    scm_send(channel[0], fresh);
    scm_send(channel[0], bound);
    scm_send(channel[0], connecting);
    close(fresh);
    close(connecting);
    await("done");
    int first = MUST(accept(listener, NULL, NULL)), second = MUST(accept(listener, NULL, NULL));
    expect_text("first", first, 5);
    expect_text("second", second, 5);
    int fd = tcp_socket(AF_INET);
    R("connect to the one that listens there", connect_fd(fd, AF_INET, port_of(bound)));
    RF("accept here", accept(bound, NULL, NULL));
    tell("checked");
    reap("child", child);
    return 0;
}
