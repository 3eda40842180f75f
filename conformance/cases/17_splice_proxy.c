// shape: self
// A proxy that moves 2 MB from one connection to another through a pipe with splice only.
#include "case.h"

enum { BYTES = 2 << 20 };
int main(void) {
    case_start();
    int in[2], out[2], pipes[2];
    tcp_pair(AF_INET, in);
    tcp_pair(AF_INET6, out);
    pid_t sender = must_fork();
    if (sender == 0) {
        static char block[BYTES];
        fill(block, sizeof block, 51);
        close(in[1]);
        close(out[0]);
        close(out[1]);
        MUST(send_all(in[0], block, sizeof block));
        _exit(0);
    }
    close(in[0]);
    pid_t proxy = must_fork();
    if (proxy == 0) {
        close(out[1]);
        MUST(pipe(pipes));
        for (;;) {
            ssize_t n = MUST(splice(in[1], NULL, pipes[1], NULL, 65536, SPLICE_F_MOVE));
            if (n == 0) break;
            while (n > 0) n -= MUST(splice(pipes[0], NULL, out[0], NULL, n, SPLICE_F_MOVE));
        }
        _exit(0);
    }
    close(in[1]);
    close(out[0]);
    drain("through the proxy", out[1]);
    reap("sender", sender);
    reap("proxy", proxy);
    return 0;
}
