// shape: self
// An exec that fails leaves every socket as it was, also those with FD_CLOEXEC; the connection goes on.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], listener = make_listener(AF_INET);
    tcp_pair(AF_INET, ends);
    MUST(fcntl(ends[1], F_SETFD, FD_CLOEXEC));
    MUST(fcntl(listener, F_SETFD, FD_CLOEXEC));
    char *arguments[] = {"x", NULL}, *environment[] = {NULL};
    R("execv", execv("/nonexistent", arguments));
    R("execve of a directory", execve("/tmp", arguments, environment));
    R("execvp", execvp("no-such-program-anywhere", arguments));
    send_text(ends[0], "x");
    expect_text("server", ends[1], 1);
    int fd = connect_to(AF_INET, port_of(listener));
    RF("accept", accept(listener, NULL, NULL));
    close(fd);
    close(ends[1]);
    drain("client", ends[0]);
    return 0;
}
