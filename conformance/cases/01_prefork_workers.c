// shape: self
// A listener made before fork; four workers accept from it; every client is served.
#include "case.h"

static void worker(int listener) {
    for (;;) {
        int fd = MUST(accept(listener, NULL, NULL));
        char c;
        if (recv(fd, &c, 1, 0) == 1) send_text(fd, "served");
        close(fd);
    }
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family), port = port_of(listener);
        pid_t workers[4];
        for (int i = 0; i < 4; i++)
            if ((workers[i] = must_fork()) == 0) worker(listener);
        for (int i = 0; i < 20; i++) {
            int fd = connect_to(family, port);
            send_text(fd, "x");
            expect_text("client", fd, 6);
            drain("client", fd);
            close(fd);
        }
        for (int i = 0; i < 4; i++) {
            kill(workers[i], SIGTERM);
            reap("worker", workers[i]);
        }
        close(listener);
    }
    return 0;
}
