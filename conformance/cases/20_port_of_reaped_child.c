// shape: self
// Whoever has reaped a child may bind the port at once of which that child had the last descriptor, however it died.
#include "case.h"

#define TIMES 60

// A listener or a bound datagram socket.
static int bound(int type, int port) {
    int fd = MUST(socket(AF_INET, type, 0));
    MUST(set_int(fd, SOL_SOCKET, SO_REUSEADDR, type == SOCK_STREAM));
    int r = bind_to(fd, AF_INET, port);
    if (r == 0 && type == SOCK_STREAM) r = listen(fd, 8);
    if (r == 0) return fd;
    close(fd);
    return -1;
}

int main(void) {
    case_start();
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM};
    static const int signals[] = {0, SIGKILL, SIGTERM};
    for (int t = 0; t < 2; t++) {
        for (int s = 0; s < 3; s++) {
            int port = private_port() + t * 3 + s, again = 0;
            for (int i = 0; i < TIMES; i++) {
                int fd = bound(types[t], port);
                again += fd >= 0;
                struct gate up = make_gate();
                pid_t child = must_fork();
                if (child == 0) {
                    if (signals[s] == 0) _exit(0);
                    gate_open(up);
                    for (;;) pause();
                }
                if (fd >= 0) close(fd);
                if (signals[s] != 0) {
                    gate_wait(up);
                    MUST(kill(child, signals[s]));
                }
                MUST(waitpid(child, NULL, 0));
            }
            T("type %d, signal %d: bound %d of %d times", types[t], signals[s], again, TIMES);
        }
    }
    return 0;
}
