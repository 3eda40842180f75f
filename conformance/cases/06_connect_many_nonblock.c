// shape: self
// A hundred non-blocking connects in one epoll, half of them refused: each ends once, the right way.
#include "case.h"

#define COUNT 100

int main(void) {
    case_start();
    int listener = make_listener_n(AF_INET, COUNT), refused = refused_port(AF_INET);
    int ep = MUST(epoll_create1(0)), fds[COUNT], good = 0, bad = 0, wrong = 0;
    for (int i = 0; i < COUNT; i++) {
        fds[i] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        int result = connect_fd(fds[i], AF_INET, i % 2 ? refused : port_of(listener));
        if (result == 0 || errno != EINPROGRESS) T("connect %d: %d %s", i, result, ename(errno));
        EP_ADD(ep, fds[i], EPOLLOUT, i);
    }
    for (int left = COUNT; left > 0;) {
        struct epoll_event e[16];
        int n = epoll_wait(ep, e, 16, WAIT_MS);
        if (n <= 0) break;
        for (int i = 0; i < n; i++) {
            int which = e[i].data.u64;
            const char *error = so_error(fds[which]);
            good += which % 2 == 0 && !strcmp(error, "0") && e[i].events == EPOLLOUT;
            bad += which % 2 == 1 && !strcmp(error, "ECONNREFUSED") && (e[i].events & EPOLLERR);
            MUST(ep_ctl(ep, EPOLL_CTL_DEL, fds[which], 0, 0));
            left--;
        }
    }
    T("connected %d, refused %d", good, bad);
    return 0;
}
