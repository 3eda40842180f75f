// shape: self
// kill -9 of three of four workers, one after another: the rest go on serving.
#include "case.h"

static void worker(int listener) {
    for (;;) {
        int fd = MUST(accept(listener, NULL, NULL));
        send_text(fd, "served");
        close(fd);
    }
}

int main(void) {
    case_start();
    int listener = private_listener(AF_INET, 0), port = port_of(listener);
    pid_t workers[4];
    for (int i = 0; i < 4; i++)
        if ((workers[i] = must_fork()) == 0) worker(listener);
    close(listener); // only the workers hold it now
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            int fd = connect_to(AF_INET, port);
            expect_text("client", fd, 6);
            close(fd);
        }
        wait_asleep(workers[round]);
        kill(workers[round], SIGKILL);
        reap("worker", workers[round]);
    }
    R("connect with no worker left", refused_soon(AF_INET, port));
    return 0;
}
