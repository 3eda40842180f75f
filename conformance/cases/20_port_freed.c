// shape: self
// A process that dies with a listener frees its port at once, however it dies; its clients are told.
#include "case.h"

int main(void) {
    case_start();
    for (int how = 0; how < 3; how++) {
        int port = private_port() + how;
        struct gate up = make_gate(), die = make_gate();
        pid_t child = must_fork();
        if (child == 0) {
            int fd = tcp_socket(AF_INET);
            MUST(set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1));
            MUST(bind_to(fd, AF_INET, port));
            MUST(listen(fd, 8));
            gate_open(up);
            for (int i = 0; i < 2; i++) MUST(accept(fd, NULL, NULL));
            gate_open(up);
            gate_wait(die);
            if (how == 0) _exit(0);
            if (how == 1) raise(SIGKILL);
            *(volatile int *)8 = 0; // dies of SIGSEGV
        }
        gate_wait(up);
        int first = connect_to(AF_INET, port), second = connect_to(AF_INET, port), third = connect_to(AF_INET, port);
        gate_wait(up);
        gate_open(die);
        reap("child", child);
        drain("first", first);
        drain("second", second);
        T("never accepted: %s", mask(wait_mask(third, ALL_EVENTS, POLLHUP)));
        int fd = tcp_socket(AF_INET);
        R("connect", connect_fd(fd, AF_INET, port));
        close(first);
        close(second);
        close(third);
        int again = tcp_socket(AF_INET);
        MUST(set_int(again, SOL_SOCKET, SO_REUSEADDR, 1));
        R("bind", bind_to(again, AF_INET, port));
        R("listen", listen(again, 8));
        R("connect", connect_fd(fd, AF_INET, port));
        close(fd);
        close(again);
    }
    return 0;
}
