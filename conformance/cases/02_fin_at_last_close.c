// shape: self
// Three processes hold an accepted socket; the peer sees EOF only when the last has closed it.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        tcp_pair(family, ends);
        struct gate a = make_gate(), b = make_gate();
        pid_t first = must_fork();
        if (first == 0) {
            close(ends[0]);
            gate_wait(a);
            close(ends[1]);
            gate_wait(a);
            _exit(0);
        }
        pid_t second = must_fork();
        if (second == 0) {
            close(ends[0]);
            gate_wait(b);
            send_text(ends[1], "still here");
            _exit(0); // closes by exit
        }
        close(ends[1]);
        T("parent closed: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
        gate_open(a);
        T("first closed: %s", mask(poll1(ends[0], POLLIN | POLLRDHUP, QUIET_MS)));
        gate_open(b);
        reap("second", second);
        drain("peer", ends[0]);
        gate_open(a);
        reap("first", first);
        close(ends[0]);
    }
    return 0;
}
