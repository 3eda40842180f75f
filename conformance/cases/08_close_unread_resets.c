// shape: self
// close with unread data sends RST; without, FIN.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char c;
        tcp_pair(family, ends);
        send_text(ends[0], "unread");
        wait_bytes(ends[1], 6);
        close(ends[1]);
        T("mask %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLHUP)));
        R("recv", recv(ends[0], &c, 1, 0));
        R("recv again", recv(ends[0], &c, 1, 0));
        T("mask %s", mask(poll1(ends[0], ALL_EVENTS, 0)));
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        close(ends[0]);

        tcp_pair(family, ends);
        send_text(ends[0], "read");
        expect_text("server", ends[1], 4);
        close(ends[1]);
        T("mask %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLRDHUP)));
        R("recv", recv(ends[0], &c, 1, 0));
        R("recv again", recv(ends[0], &c, 1, 0));
        close(ends[0]);
    }
    return 0;
}
