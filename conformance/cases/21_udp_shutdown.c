// shape: self
// shutdown of a datagram socket: what is refused, what is woken, and that no signal comes with EPIPE.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int fd = udp_bound(family), ends[2];
        R("unconnected", shutdown(fd, SHUT_RD));
        T("mask all the same %s", mask(poll1(fd, ALL_EVENTS, 0)));
        R("a blocking recv ends", recv(fd, &(char){0}, 1, 0));
        R("one that does not block", recv(fd, &(char){0}, 1, MSG_DONTWAIT));
        udp_pair(family, ends);
        R("how 7", shutdown(ends[0], 7));
        R("SHUT_WR", shutdown(ends[0], SHUT_WR));
        T("mask %s", mask(poll1(ends[0], ALL_EVENTS, 0)));
        R("send", send(ends[0], "x", 1, 0));
        MUST(send(ends[1], "heard", 5, 0));
        udp_expect("the other direction", ends[0]);
        MUST(send(ends[1], "late", 4, 0));
        wait_mask(ends[0], POLLIN, POLLIN);
        R("SHUT_RD", shutdown(ends[0], SHUT_RD));
        T("mask %s", mask(poll1(ends[0], ALL_EVENTS, 0)));
        R("what was there", recv(ends[0], &(char[8]){0}, 8, 0));
        R("then", recv(ends[0], &(char[8]){0}, 8, 0));
        close(fd);
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
