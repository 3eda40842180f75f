// shape: self
// fork, dup, a killed child, exec and SCM_RIGHTS: the socket is one, whoever has it.
#include "scm.h"
#include "udp.h"

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) {
        int fd = atoi(argv[1]);
        R("after exec", send(fd, "exec'ed", 7, 0));
        T("type %d", get_int(fd, SOL_SOCKET, SO_TYPE));
        return 0;
    }
    int ends[2];
    udp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        udp_expect("child", ends[1]);
        R("child sends", send(ends[1], "from the child", 14, 0));
        _exit(0);
    }
    MUST(send(ends[0], "to the child", 12, 0));
    reap("child", child);
    udp_expect("parent", ends[0]);
    child = must_fork();
    if (child == 0) {
        for (;;) send(ends[1], "flood", 5, MSG_DONTWAIT);
    }
    udp_expect("flood", ends[0]);
    kill(child, SIGKILL);
    reap("killed", child);
    // What it sent last may still be on its way.
    while (poll1(ends[0], POLLIN, QUIET_MS) & POLLIN) recv(ends[0], &(char[8]){0}, 8, MSG_DONTWAIT);
    MUST(send(ends[1], "alive", 5, 0));
    udp_expect("after the kill", ends[0]);
    int copy = MUST(dup(ends[1]));
    close(ends[1]);
    R("by the duplicate", send(copy, "dup", 3, 0));
    udp_expect("dup", ends[0]);
    child = must_fork();
    if (child == 0) {
        char number[16];
        sprintf(number, "%d", copy);
        execl("/proc/self/exe", "case", number, NULL);
        _exit(9);
    }
    reap("exec", child);
    udp_expect("exec'ed", ends[0]);
    int unix_pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair));
    scm_send(unix_pair[0], copy);
    close(copy);
    MUST(send(ends[0], "in flight", 9, 0));
    copy = scm_receive(unix_pair[1]);
    udp_expect("passed", copy);
    R("close with something unread", close(ends[0]));
    return 0;
}
