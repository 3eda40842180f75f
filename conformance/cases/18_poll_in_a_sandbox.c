// shape: self
// A sandbox that takes RLIMIT_NOFILE down to one (sshd's before authentication) polls the one descriptor that it needs.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 1, .rlim_max = 1};
        MUST(setrlimit(RLIMIT_NOFILE, &limit));
        struct pollfd p = {.fd = ends[1], .events = POLLIN};
        R("nothing there", poll(&p, 1, QUIET_MS));
        if (write(ends[1], "go", 2) != 2) _exit(98);
        R("data", poll(&p, 1, WAIT_MS));
        char text[8] = "";
        R("read", read(ends[1], text, sizeof text));
        _exit(write(ends[1], "on", 2) != 2);
    }
    char text[8] = "";
    if (read(ends[0], text, 2) != 2) return 98;
    wait_asleep(child);
    send_text(ends[0], "late");
    if (read(ends[0], text, 2) != 2) return 98;
    reap("child", child);
    return 0;
}
