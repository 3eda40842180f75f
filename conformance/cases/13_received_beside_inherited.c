// shape: self
// A process has a socket by fork and gets it once more by SCM_RIGHTS. What came is closed, and the other is sent on: while only the
// message has it, it lives.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    int ends[2], there[2], back[2];
    tcp_pair(AF_INET, ends);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, there));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, back));
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        int received = scm_receive(there[1]);
        close(received);
        char go;
        if (read(there[1], &go, 1) != 1) _exit(97);
        scm_send(back[0], ends[1]);
        close(ends[1]);
        if (write(back[0], "!", 1) != 1) _exit(98);
        if (read(there[1], &go, 1) != 1) _exit(97);
        _exit(0);
    }
    scm_send(there[0], ends[1]);
    close(ends[1]);
    MUST(write(there[0], "g", 1));
    wait_bytes(back[1], 2); // what carries it, and the word that the child has closed its own
    T("while in flight: %d", poll1(ends[0], POLLIN, QUIET_MS));
    int fd = scm_receive(back[1]);
    send_text(fd, "alive");
    expect_text("through", ends[0], 5);
    MUST(write(there[0], "e", 1));
    reap("child", child);
    return 0;
}
