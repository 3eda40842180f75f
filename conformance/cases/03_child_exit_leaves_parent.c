// shape: self
// Children that end by _exit, exit and SIGKILL leave the parent's connection and listener unharmed.
#include "case.h"

static void look(int listener, int ends[2]) {
    send_text(ends[0], "ping");
    expect_text("to server", ends[1], 4);
    send_text(ends[1], "pong");
    expect_text("to client", ends[0], 4);
    T("masks %s %s", mask(poll1(ends[0], ALL_EVENTS, 0)), mask(poll1(ends[1], ALL_EVENTS, 0)));
    int fresh = connect_to(AF_INET, port_of(listener));
    int taken = RF("accept", accept(listener, NULL, NULL));
    close(fresh);
    drain("taken", taken);
    close(taken);
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), ends[2];
    tcp_pair(AF_INET, ends);
    for (int how = 0; how < 4; how++) {
        pid_t child = must_fork();
        if (child == 0) {
            if (how == 0) _exit(3);
            if (how == 1) exit(4);
            if (how == 2) raise(SIGKILL);
            abort();
        }
        reap("child", child);
        look(listener, ends);
    }
    return 0;
}
