// shape: self
// No descriptor left: socket, accept, dup and epoll_create give EMFILE; the waiting connection is still there afterwards.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), client = connect_to(AF_INET, port_of(listener));
    wait_mask(listener, POLLIN, POLLIN);
    leave_no_number();
    R("socket", socket(AF_INET, SOCK_STREAM, 0));
    R("accept", accept(listener, NULL, NULL));
    R("accept4", accept4(listener, NULL, NULL, SOCK_NONBLOCK));
    R("dup", dup(listener));
    R("fcntl F_DUPFD", fcntl(listener, F_DUPFD, 0));
    R("epoll_create1", epoll_create1(0));
    T("still ready: %s", mask(poll1(listener, POLLIN, 0)));
    send_text(client, "patience");
    limit_numbers(1024);
    int taken = RF("accept", accept(listener, NULL, NULL));
    expect_text("server", taken, 8);
    R("nothing was lost or doubled", (nonblock(listener), accept(listener, NULL, NULL)));
    close(taken);
    drain("client", client);
    return 0;
}
