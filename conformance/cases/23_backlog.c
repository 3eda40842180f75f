// shape: self
// A full backlog lets no more in, loses none of those that are in, and opens up as they are taken.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener_n(family, 4), fds[32], count = 0;
        do {
            fds[count] = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
            connect_fd(fds[count], family, port_of(listener));
        } while ((poll1(fds[count++], POLLOUT, 300) & POLLOUT) && count < 32);
        T("as many as backlog and one: %d", count - 1 == 5);
        for (int i = 0; i < count - 1; i++) send_text(fds[i], "x");
        for (int i = 0; i < count - 1; i++) {
            int taken = MUST(accept(listener, NULL, NULL));
            expect_text("taken", taken, 1);
            close(taken);
        }
        T("the last gets in: %s", mask(wait_mask(fds[count - 1], POLLOUT, POLLOUT)));
        int taken = RF("accept", accept(listener, NULL, NULL));
        send_text(fds[count - 1], "last");
        expect_text("taken", taken, 4);
        close(taken);
        for (int i = 0; i < count; i++) close(fds[i]);
        close(listener);
    }
    return 0;
}
