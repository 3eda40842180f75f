// shape: self
// SO_LINGER {1,0} resets and drops what is unsent; {1,n} waits until the peer has it, or the time is over.
#include "case.h"

static void set_linger(int fd, int on, int seconds) {
    struct linger l = {on, seconds}, back = {-1, -1};
    socklen_t length = sizeof back;
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    MUST(getsockopt(fd, SOL_SOCKET, SO_LINGER, &back, &length));
    T("linger %d %d", back.l_onoff, back.l_linger);
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        char c;
        tcp_pair(family, ends);
        set_linger(ends[0], 1, 0);
        close(ends[0]);
        T("mask %s", mask(wait_mask(ends[1], ALL_EVENTS, POLLHUP)));
        R("recv", recv(ends[1], &c, 1, 0));
        R("recv again", recv(ends[1], &c, 1, 0));
        close(ends[1]);

        tcp_pair(family, ends);
        set_linger(ends[0], 1, 5);
        send_text(ends[0], "all of it");
        int64_t begun = now_ms();
        R("close", close(ends[0]));
        T("not the whole time: %d", now_ms() - begun < 3000);
        drain("peer", ends[1]);
        close(ends[1]);

        tcp_pair(family, ends);
        set_linger(ends[0], 0, 0);
        send_text(ends[0], "no linger");
        close(ends[0]);
        drain("peer", ends[1]);
        close(ends[1]);
    }
    int ends[2];
    tcp_pair(AF_INET, ends);
    small_buffers(ends[0], ends[1]);
    fill_up(ends[0]);
    blocking(ends[0]);
    set_linger(ends[0], 1, 1);
    int64_t begun = now_ms();
    R("close of a full one", close(ends[0]));
    int64_t took = now_ms() - begun;
    T("waits its second: %d", took > 900 && took < 5000);
    return 0;
}
