// shape: self
// poll over 300 sockets, most idle, with closed and negative ones between; POLLRDNORM and its kin; ppoll's time.
#include "case.h"

enum { COUNT = 150 };
int main(void) {
    case_start();
    static int ends[COUNT][2];
    static struct pollfd p[2 * COUNT];
    for (int i = 0; i < COUNT; i++) {
        tcp_pair(i % 2 ? AF_INET : AF_INET6, ends[i]);
        p[2 * i] = (struct pollfd){ends[i][1], POLLIN, 0x55};
        p[2 * i + 1] = (struct pollfd){i % 3 ? ends[i][0] : -1, POLLIN | POLLPRI, 0x55};
    }
    R("idle", poll(p, 2 * COUNT, 10));
    for (int i = 0; i < COUNT; i += 10) {
        send_text(ends[i][0], "x");
        wait_bytes(ends[i][1], 1);
    }
    R("fifteen", poll(p, 2 * COUNT, WAIT_MS));
    int right = 0;
    for (int i = 0; i < 2 * COUNT; i++) right += p[i].revents == (i % 20 == 0 ? POLLIN : 0);
    T("right %d", right);
    struct pollfd one = {ends[0][1], POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND | POLLOUT, 0};
    R("kin", poll(&one, 1, 0));
    T("%s", mask((uint16_t)one.revents));
    one.events = 0;
    R("asked for nothing", poll(&one, 1, 10));
    struct pollfd twice[2] = {{ends[0][1], POLLIN, 0}, {ends[0][1], POLLOUT, 0}};
    R("one socket twice", poll(twice, 2, 0));
    T("%s %s", mask((uint16_t)twice[0].revents), mask((uint16_t)twice[1].revents));
    struct timespec t = {0, 40000000};
    int64_t begun = now_ms();
    one = (struct pollfd){ends[1][1], POLLIN, 0};
    R("ppoll", ppoll(&one, 1, &t, NULL));
    T("not early %d", now_ms() - begun >= 39);
    t.tv_nsec = -1;
    R("a wrong time", ppoll(&one, 1, &t, NULL));
    close(ends[1][1]);
    R("closed", poll(&one, 1, 0));
    T("%s", mask((uint16_t)one.revents));
    return 0;
}
