// shape: self
// A client that has sent, closed or reset before accept: the connection is there, with what it brought.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family);
        char c;
        int fd = connect_to(family, port_of(listener));
        send_text(fd, "early");
        close(fd);
        msleep(50);
        int taken = RF("accept after FIN", accept(listener, NULL, NULL));
        drain("server", taken);
        close(taken);
        fd = connect_to(family, port_of(listener));
        close(fd);
        msleep(50);
        taken = RF("accept after an empty one", accept(listener, NULL, NULL));
        T("mask %s", mask(wait_mask(taken, ALL_EVENTS, POLLRDHUP)));
        drain("server", taken);
        close(taken);
        fd = connect_to(family, port_of(listener));
        close_rst(fd);
        msleep(50);
        taken = RF("accept after RST", accept(listener, NULL, NULL));
        T("mask %s", mask(wait_mask(taken, ALL_EVENTS, POLLHUP)));
        R("recv", recv(taken, &c, 1, 0));
        R("recv again", recv(taken, &c, 1, 0));
        union address a;
        socklen_t length = sizeof a;
        R("getpeername", getpeername(taken, &a.sa, &length));
        close(taken);
        close(listener);
    }
    return 0;
}
