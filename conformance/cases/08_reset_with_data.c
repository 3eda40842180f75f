// shape: self
// A reset that comes behind unread data: the data is still there, then ECONNRESET once, then EOF.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char c;
        tcp_pair(family, ends);
        send_text(ends[0], "unread");
        wait_bytes(ends[1], 6);
        close_rst(ends[0]);
        T("mask %s", mask(wait_mask(ends[1], ALL_EVENTS, POLLERR | POLLHUP)));
        R("recv of 3", recv_all(ends[1], (char[3]){0}, 3));
        R("recv of 3", recv_all(ends[1], (char[3]){0}, 3));
        R("recv", recv(ends[1], &c, 1, 0));
        R("recv", recv(ends[1], &c, 1, 0));
        R("send", send(ends[1], "x", 1, MSG_NOSIGNAL));
        close(ends[1]);
    }
    return 0;
}
