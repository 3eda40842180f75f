// shape: self
// FIONREAD, SIOCOUTQ and SIOCATMARK on sockets in each state; other ioctls are refused as on any socket.
#include "case.h"
#include <linux/sockios.h>

static void ask(const char *what, int fd) {
    int n = -1;
    int r = ioctl(fd, FIONREAD, &n);
    if (r < 0)
        T("%s: %s", what, ename(errno));
    else
        T("%s: %d", what, n);
}

int main(void) {
    case_start();
    int ends[2], n = -1;
    ask("fresh", tcp_socket(AF_INET));
    ask("listener", make_listener(AF_INET));
    tcp_pair(AF_INET, ends);
    ask("nothing", ends[1]);
    send_text(ends[0], "abc");
    wait_bytes(ends[1], 3);
    ask("three", ends[1]);
    send_text(ends[0], "defgh");
    wait_bytes(ends[1], 8);
    ask("eight", ends[1]);
    expect_text("recv", ends[1], 5);
    ask("three left", ends[1]);
    R("SIOCATMARK", ioctl(ends[1], SIOCATMARK, &n));
    T("%d", n);
    for (int64_t end = now_ms() + WAIT_MS; ioctl(ends[0], SIOCOUTQ, &n) == 0 && n && now_ms() < end;) msleep(1);
    T("SIOCOUTQ in the end %d", n);
    close(ends[0]);
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    ask("after FIN", ends[1]);
    expect_text("recv", ends[1], 3);
    ask("at EOF", ends[1]);
    R("TIOCGWINSZ", ioctl(ends[1], TIOCGWINSZ, &n));
    ask("a bad fd", 999);
    return 0;
}
