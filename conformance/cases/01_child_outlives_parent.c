// shape: self
// A server that daemonises: fork, setsid, fork again, the first two end; the last one serves on.
#include "case.h"

int main(void) {
    case_start();
    int listener = private_listener(AF_INET, 0), port = port_of(listener);
    struct gate done = make_gate();
    pid_t first = must_fork();
    if (first == 0) {
        setsid();
        if (must_fork() != 0) _exit(0);
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        for (int i = 0; i < 3; i++) {
            int fd = MUST(accept(listener, NULL, NULL));
            send_text(fd, "daemon");
            close(fd);
        }
        close(listener);
        gate_open(done);
        _exit(0);
    }
    reap("first child", first);
    close(listener);
    for (int i = 0; i < 3; i++) {
        int fd = connect_to(AF_INET, port);
        expect_text("client", fd, 6);
        drain("client", fd);
        close(fd);
    }
    gate_wait(done);
    // A connect that comes with another process's close may still reach the listener and be reset (README); the next does not.
    int refused = 0;
    for (int tries = 0; tries < 100 && !refused; tries++) {
        int fd = tcp_socket(AF_INET);
        refused = connect_fd(fd, AF_INET, port) < 0 && errno == ECONNREFUSED;
        close(fd);
    }
    T("after the daemon closed it: refused %d", refused);
    return 0;
}
