// shape: self
// What epoll reports at a FIN, at a reset and when both ends have shut down, asked for this and that.
#include "case.h"

int main(void) {
    case_start();
    uint32_t asked[] = {EPOLLIN, EPOLLIN | EPOLLRDHUP, EPOLLOUT, EPOLLRDHUP, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    for (int how = 0; how < 3; how++)
        for (int i = 0; i < 5; i++) {
            int ends[2], ep = MUST(epoll_create1(0));
            tcp_pair(AF_INET, ends);
            if (how == 0) {
                MUST(shutdown(ends[0], SHUT_WR));
                wait_mask(ends[1], ALL_EVENTS, POLLRDHUP);
            } else if (how == 1) {
                close_rst(ends[0]);
                wait_mask(ends[1], ALL_EVENTS, POLLHUP);
            } else {
                MUST(shutdown(ends[1], SHUT_WR));
                MUST(shutdown(ends[0], SHUT_WR));
                wait_mask(ends[1], ALL_EVENTS, POLLHUP);
            }
            EP_ADD(ep, ends[1], asked[i], 1);
            const char *names[] = {"FIN", "RST", "both shut"};
            T("%s, asked for %s", names[how], mask(asked[i] & ~EPOLLET));
            ep_show("epoll", ep, how == 0 && asked[i] == EPOLLOUT ? WAIT_MS : QUIET_MS);
            close(ends[1]);
            if (how != 1) close(ends[0]);
            close(ep);
        }
    return 0;
}
