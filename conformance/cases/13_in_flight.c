// shape: self
// A connection in flight: the sender has closed it before it is received; discarded with its channel, it ends.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    int ends[2], channel[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "early");
    scm_send(channel[0], ends[1]);
    close(ends[1]);
    T("in flight: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
    send_text(ends[0], " late");
    int fd = scm_receive(channel[1]);
    expect_text("received", fd, 10);
    send_text(fd, "back");
    expect_text("peer", ends[0], 4);
    scm_send(channel[0], fd);
    close(fd);
    T("in flight again: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
    close(channel[0]);
    T("the sender's end closed: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
    close(channel[1]);
    drain("discarded", ends[0]);

    // The sending process is gone, too, before anybody receives.
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, channel));
    int listener = make_listener(AF_INET), client = connect_to(AF_INET, port_of(listener));
    pid_t child = must_fork();
    if (child == 0) {
        int taken = MUST(accept(listener, NULL, NULL));
        scm_send(channel[0], taken);
        raise(SIGKILL);
    }
    reap("sender", child);
    T("in flight: %s", mask(poll1(client, POLLIN | POLLRDHUP, QUIET_MS)));
    fd = scm_receive(channel[1]);
    send_text(fd, "alive");
    expect_text("client", client, 5);
    close(fd);
    drain("client", client);
    return 0;
}
