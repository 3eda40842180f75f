// shape: self
// As inetd and ssh's ProxyCommand do: a shell command with a socket as its stdin and stdout.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        dup2(ends[1], 0);
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execl("/bin/sh", "sh", "-c", "read line; echo \"got $line\"; cat; echo end", NULL);
        _exit(127);
    }
    close(ends[1]);
    send_text(ends[0], "first\nsecond\nthird\n");
    MUST(shutdown(ends[0], SHUT_WR));
    expect_text("shell", ends[0], 10);
    expect_text("cat", ends[0], 13);
    drain("rest", ends[0]);
    reap("shell", child);
    return 0;
}
