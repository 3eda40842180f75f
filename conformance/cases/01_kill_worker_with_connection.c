// shape: self
// A worker dies by SIGKILL while it holds a connection: its client sees the end, other clients nothing.
#include "case.h"

static void worker(int listener) {
    for (;;) {
        int fd = MUST(accept(listener, NULL, NULL));
        if (fork() == 0) { // a process per connection, so that each can be killed on its own
            alarm(CASE_ALARM_S);
            pid_t me = getpid();
            MUST(send(fd, &me, sizeof me, 0));
            char c;
            while (recv(fd, &c, 1, 0) == 1) MUST(send(fd, &c, 1, 0));
            _exit(0);
        }
        close(fd);
    }
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener);
    pid_t top = must_fork();
    if (top == 0) {
        signal(SIGCHLD, SIG_IGN);
        worker(listener);
    }
    int victim = connect_to(AF_INET, port), other = connect_to(AF_INET, port);
    pid_t victim_pid, other_pid;
    MUST(recv_all(victim, &victim_pid, sizeof victim_pid));
    MUST(recv_all(other, &other_pid, sizeof other_pid));
    send_text(victim, "a");
    expect_text("victim", victim, 1);
    MUST(kill(victim_pid, SIGKILL));
    drain("victim's client", victim);
    send_text(other, "b");
    expect_text("other", other, 1);
    MUST(shutdown(other, SHUT_WR));
    drain("other's client", other);
    int fresh = connect_to(AF_INET, port);
    MUST(recv_all(fresh, &other_pid, sizeof other_pid));
    send_text(fresh, "c");
    expect_text("fresh", fresh, 1);
    close(fresh);
    kill(top, SIGKILL);
    reap("acceptor", top);
    return 0;
}
