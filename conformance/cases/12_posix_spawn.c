// shape: self
// posix_spawn with file actions: adddup2 of a socket onto 0, 1 and a high number, addclose, FD_CLOEXEC cleared by dup2.
#include "case.h"

extern char **environ;

int main(int argc, char **argv) {
    case_start();
    if (argc > 1) { // the spawned program: stdin is a connection, 20 a listener
        char text[8] = {0};
        ssize_t n = read(0, text, 5);
        int closed = fcntl(atoi(argv[1]), F_GETFD);
        dprintf(1, "read %zd %s, other %d;", n, text, closed);
        int taken = accept(20, NULL, NULL);
        dprintf(taken, "accepted");
        return 4;
    }
    int ends[2], other[2], listener = make_listener(AF_INET);
    tcp_pair(AF_INET, ends);
    tcp_pair(AF_INET, other);
    MUST(fcntl(ends[1], F_SETFD, FD_CLOEXEC));
    MUST(fcntl(listener, F_SETFD, FD_CLOEXEC));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, listener, 20);
    posix_spawn_file_actions_addclose(&actions, other[1]);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    char number[16];
    sprintf(number, "%d", other[1]);
    char *arguments[] = {"case", number, NULL};
    pid_t child;
    send_text(ends[0], "hello");
    MUST0(posix_spawn(&child, "/proc/self/exe", &actions, NULL, arguments, environ));
    close(ends[1]);
    expect_text("from the spawned one", ends[0], 22);
    int fd = connect_to(AF_INET, port_of(listener));
    expect_text("its listener", fd, 8);
    reap("spawned", child);
    drain("connection", ends[0]);
    drain("accepted", fd);
    send_text(other[0], "still here");
    expect_text("the other", other[1], 10);
    posix_spawn_file_actions_destroy(&actions);
    child = 0;
    char *wrong[] = {"nothing", NULL};
    T("spawn of nothing: %s", ename(posix_spawn(&child, "/nonexistent", NULL, NULL, wrong, environ)));
    return 0;
}
