// shape: self
// vfork and exec, and vfork whose exec fails: the parent's sockets and its own variables stay right.
#include "case.h"

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) {
        int fd = atoi(argv[1]);
        char c;
        T("in the new image: recv %zd", recv(fd, &c, 1, 0));
        send_text(fd, "bye");
        return 6;
    }
    int ends[2];
    tcp_pair(AF_INET, ends);
    char number[16];
    sprintf(number, "%d", ends[1]);
    pid_t child = vfork();
    if (child == 0) {
        execl("/nonexistent", "nothing", NULL);
        _exit(errno == ENOENT ? 3 : 4);
    }
    reap("failed exec", child);
    send_text(ends[0], "a");
    expect_text("parent", ends[1], 1);
    send_text(ends[0], "b");
    child = vfork();
    if (child == 0) {
        execl("/proc/self/exe", "case", number, NULL);
        _exit(127);
    }
    close(ends[1]);
    expect_text("from the new image", ends[0], 3);
    reap("exec", child);
    drain("after its exit", ends[0]);
    return 0;
}
