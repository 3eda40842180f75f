// shape: self
// Whoever connects when another process's close of a listener has returned is refused: nobody accepts what comes then.
#include "case.h"
#include <stdatomic.h>

#define TIMES 60

int main(void) {
    case_start();
    // Looked at without a call, so that the connect comes as soon as it may.
    atomic_int *closed = mmap(NULL, sizeof *closed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (closed == MAP_FAILED) MUST(-1);
    int refused = 0;
    for (int i = 0; i < TIMES; i++) {
        int listener = private_listener(AF_INET, 0), port = port_of(listener);
        struct gate now = make_gate();
        *closed = 0;
        pid_t child = must_fork();
        if (child == 0) {
            gate_wait(now);
            close(listener);
            *closed = 1;
            _exit(0);
        }
        close(listener);
        int fd = tcp_socket(AF_INET);
        gate_open(now);
        while (!*closed) sched_yield();
        refused += connect_fd(fd, AF_INET, port) < 0 && errno == ECONNREFUSED;
        close(fd);
        close(now.end[0]);
        close(now.end[1]);
        MUST(waitpid(child, NULL, 0));
    }
    T("refused %d of %d times", refused, TIMES);
    return 0;
}
