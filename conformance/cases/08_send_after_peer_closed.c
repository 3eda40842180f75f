// shape: self
// After the peer's close: the first send goes out and is answered by RST, the next fails; what came before can be read.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char c;
        tcp_pair(family, ends);
        send_text(ends[1], "last words");
        close(ends[1]);
        wait_mask(ends[0], ALL_EVENTS, POLLRDHUP);
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        T("mask %s", mask(wait_mask(ends[0], ALL_EVENTS, POLLERR)));
        // The stream was whole (FIN came), so the data is there, and after it no ECONNRESET but the EOF or EPIPE.
        expect_text("client", ends[0], 10);
        R("recv", recv(ends[0], &c, 1, 0));
        R("recv", recv(ends[0], &c, 1, 0));
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        T("SO_ERROR %s", so_error(ends[0]));
        close(ends[0]);

        tcp_pair(family, ends);
        close(ends[1]);
        wait_mask(ends[0], ALL_EVENTS, POLLRDHUP);
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        wait_mask(ends[0], ALL_EVENTS, POLLERR);
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        R("send", send(ends[0], "x", 1, MSG_NOSIGNAL));
        R("recv", recv(ends[0], &c, 1, 0));
        close(ends[0]);
    }
    return 0;
}
