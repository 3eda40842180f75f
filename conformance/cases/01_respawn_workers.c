// shape: self
// A master forks a new worker for each that dies, ten times over, and no request is lost.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener);
    for (int i = 0; i < 10; i++) {
        pid_t worker = must_fork();
        if (worker == 0) {
            for (int k = 0; k < 3; k++) {
                int fd = MUST(accept(listener, NULL, NULL));
                send_text(fd, "ok");
                close(fd);
            }
            if (i % 2) raise(SIGKILL);
            _exit(0);
        }
        for (int k = 0; k < 3; k++) {
            int fd = connect_to(AF_INET, port);
            expect_text("client", fd, 2);
            drain("client", fd);
            close(fd);
        }
        reap("worker", worker);
    }
    return 0;
}
