// shape: self
// MSG_PEEK, DONTWAIT, WAITALL, TRUNC on a blocking socket.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char text[16] = {0};
        tcp_pair(family, ends);
        R("DONTWAIT, nothing there", recv(ends[1], text, 4, MSG_DONTWAIT));
        T("blocking still: %d", !(fcntl(ends[1], F_GETFL) & O_NONBLOCK));
        send_text(ends[0], "abcdefghij");
        T("FIONREAD %d", wait_bytes(ends[1], 10));
        R("PEEK", recv(ends[1], text, 4, MSG_PEEK));
        T("%.4s", text);
        R("PEEK again", recv(ends[1], text, 16, MSG_PEEK));
        R("PEEK|DONTWAIT", recv(ends[1], text, 2, MSG_PEEK | MSG_DONTWAIT));
        R("recv", recv(ends[1], text, 3, 0));
        T("%.3s", text);
        R("PEEK", recv(ends[1], text, 4, MSG_PEEK));
        T("%.4s", text);
        R("TRUNC discards", recv(ends[1], text, 4, MSG_TRUNC));
        T("%.4s", text);
        int there = -1;
        MUST(ioctl(ends[1], FIONREAD, &there));
        T("FIONREAD %d", there);
        R("TRUNC without a buffer", recv(ends[1], NULL, 2, MSG_TRUNC));
        R("the last", recv(ends[1], text, 16, 0));
        T("%c", text[0]);
        R("OOB, none", recv(ends[1], text, 1, MSG_OOB));
        R("ERRQUEUE, none", recv(ends[1], text, 1, MSG_ERRQUEUE));
        close(ends[0]);
        wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
        R("PEEK at EOF", recv(ends[1], text, 4, MSG_PEEK));
        R("WAITALL at EOF", recv(ends[1], text, 4, MSG_WAITALL));
        close(ends[1]);
    }
    return 0;
}
