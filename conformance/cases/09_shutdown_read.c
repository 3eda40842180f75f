// shape: self
// SHUT_RD: recv gives EOF at once, what still comes can be read, the other direction and the peer see nothing of it.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char text[16];
        tcp_pair(family, ends);
        send_text(ends[0], "before");
        wait_bytes(ends[1], 6);
        R("shutdown", shutdown(ends[1], SHUT_RD));
        R("recv", recv(ends[1], text, sizeof text, 0));
        R("recv", recv(ends[1], text, sizeof text, 0));
        R("peer's send", send(ends[0], "after", 5, MSG_NOSIGNAL));
        T("peer %s", mask(poll1(ends[0], ALL_EVENTS, QUIET_MS)));
        send_text(ends[1], "still writes");
        expect_text("peer", ends[0], 12);
        T("own mask %s", mask(poll1(ends[1], ALL_EVENTS, 0)));
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
