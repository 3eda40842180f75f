// shape: self
// Three processes block in accept; each of three connections wakes one of them and is taken once.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener);
    struct gate go = make_gate();
    pid_t workers[3];
    for (int i = 0; i < 3; i++)
        if ((workers[i] = must_fork()) == 0) {
            int fd = MUST(accept(listener, NULL, NULL));
            char c;
            MUST(recv(fd, &c, 1, 0));
            MUST(send(fd, &c, 1, 0));
            gate_wait(go); // takes no second one
            _exit(0);
        }
    for (int i = 0; i < 3; i++) wait_asleep(workers[i]);
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = connect_to(AF_INET, port);
        send_text(fds[i], "x");
        expect_text("client", fds[i], 1);
    }
    int fourth = connect_to(AF_INET, port);
    T("a fourth waits: %s", mask(poll1(fourth, POLLIN, QUIET_MS)));
    for (int i = 0; i < 3; i++) gate_open(go);
    for (int i = 0; i < 3; i++) reap("worker", workers[i]);
    int taken = RF("the parent takes it", accept(listener, NULL, NULL));
    send_text(taken, "late");
    expect_text("fourth", fourth, 4);
    return 0;
}
