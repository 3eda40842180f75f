// shape: self
// Non-blocking connect: EINPROGRESS, writable, SO_ERROR 0; a second connect confirms, a third is EISCONN.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family);
        int fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
        T("fresh: %s", mask(poll1(fd, ALL_EVENTS, 0)));
        R("connect", connect_fd(fd, family, port_of(listener)));
        T("connected: %s", mask(wait_mask(fd, ALL_EVENTS, POLLOUT)));
        T("SO_ERROR %s", so_error(fd));
        R("connect again", connect_fd(fd, family, port_of(listener)));
        R("connect once more", connect_fd(fd, family, port_of(listener)));
        int taken = RF("accept", accept(listener, NULL, NULL));
        send_text(fd, "hello");
        expect_text("server", taken, 5);
        char c;
        R("recv", recv(fd, &c, 1, 0));
        close(fd);
        drain("server", taken);
        close(taken);
        close(listener);
    }
    return 0;
}
