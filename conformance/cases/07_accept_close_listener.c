// shape: self
// Closing a listener resets what waited in it; connections that were accepted go on.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = private_listener(family, family == AF_INET6), port = port_of(listener);
        int first = connect_to(family, port), waiting = connect_to(family, port);
        int taken = MUST(accept(listener, NULL, NULL));
        wait_mask(listener, POLLIN, POLLIN);
        close(listener);
        T("the waiting one: %s", mask(wait_mask(waiting, ALL_EVENTS, POLLHUP)));
        T("SO_ERROR %s", so_error(waiting));
        int late = tcp_socket(family);
        R("connect", connect_fd(late, family, port));
        send_text(first, "goes on");
        expect_text("server", taken, 7);
        close(taken);
        drain("first", first);
        close(first);
        close(waiting);
        close(late);
    }
    return 0;
}
