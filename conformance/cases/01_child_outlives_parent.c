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
    int fd = tcp_socket(AF_INET);
    R("connect after the daemon closed it", connect_fd(fd, AF_INET, port));
    return 0;
}
