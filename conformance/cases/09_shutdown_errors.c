// shape: self
// shutdown on sockets in every state, and with a wrong direction.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2], fresh = tcp_socket(family), bound = tcp_socket(family);
        MUST(bind_to(bound, family, 0));
        R("fresh", shutdown(fresh, SHUT_WR));
        R("fresh, SHUT_RD", shutdown(fresh, SHUT_RD));
        R("bound", shutdown(bound, SHUT_RDWR));
        R("a bad fd", shutdown(999, SHUT_RDWR));
        R("a pipe", shutdown(0, SHUT_RDWR));
        tcp_pair(family, ends);
        R("direction 3", shutdown(ends[0], 3));
        R("direction -1", shutdown(ends[0], -1));
        R("SHUT_RDWR", shutdown(ends[0], SHUT_RDWR));
        T("mask %s", mask(wait_mask(ends[1], ALL_EVENTS, POLLRDHUP)));
        R("SHUT_RDWR again", shutdown(ends[0], SHUT_RDWR));
        R("the other", shutdown(ends[1], SHUT_RDWR));
        T("masks %s %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLHUP)), mask(wait_mask(ends[1], ALL_EVENTS, POLLHUP)));
        char c;
        R("recv", recv(ends[0], &c, 1, 0));
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        union address a;
        socklen_t length = sizeof a;
        // The last acknowledgement is the peer's to send: soon, not at once.
        for (int i = 0; i < WAIT_MS && getpeername(ends[0], &a.sa, &length) == 0; i++) usleep(1000);
        R("getpeername", getpeername(ends[0], &a.sa, &length));
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
