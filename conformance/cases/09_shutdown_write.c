// shape: self
// SHUT_WR: the peer drains and sees EOF at once, the other direction still flows, for as long as wanted.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        static char block[100000];
        fill(block, sizeof block, 3);
        tcp_pair(family, ends);
        send_text(ends[0], "request");
        R("shutdown", shutdown(ends[0], SHUT_WR));
        R("send after it", send(ends[0], "x", 1, MSG_NOSIGNAL));
        drain("server", ends[1]);
        T("server %s", mask(poll1(ends[1], ALL_EVENTS, 0)));
        T("client %s", mask(poll1(ends[0], ALL_EVENTS, 0)));
        for (int i = 0; i < 3; i++) {
            R("answer", send_all(ends[1], block, sizeof block));
            R("received", recv_all(ends[0], block, sizeof block));
        }
        R("shutdown again", shutdown(ends[0], SHUT_WR));
        send_text(ends[1], "bye");
        R("server's shutdown", shutdown(ends[1], SHUT_WR));
        drain("client", ends[0]);
        T("server %s", mask(wait_mask(ends[1], ALL_EVENTS, POLLHUP)));
        T("client %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLHUP)));
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
