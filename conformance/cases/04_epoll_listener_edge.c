// shape: self
// Edge-triggered listener: one edge per new connection, all taken until EAGAIN.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family), ep = MUST(epoll_create1(0)), clients[6];
        nonblock(listener);
        EP_ADD(ep, listener, EPOLLIN | EPOLLET, 1);
        EP_QUIET("nothing", ep);
        clients[0] = connect_to(family, port_of(listener));
        ep_show("one", ep, WAIT_MS);
        EP_QUIET("once", ep);
        clients[1] = connect_to(family, port_of(listener));
        ep_show("two", ep, WAIT_MS);
        EP_QUIET("once", ep);
        for (int i = 0; i < 2; i++) close(MUST(accept(listener, NULL, NULL)));
        R("accept", accept(listener, NULL, NULL));
        EP_QUIET("taken", ep);
        for (int i = 2; i < 6; i++) clients[i] = connect_to(family, port_of(listener));
        ep_show("four more", ep, WAIT_MS);
        int taken = 0;
        for (int64_t end = now_ms() + WAIT_MS; taken < 4 && now_ms() < end;) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0) close(fd), taken++;
        }
        T("taken %d", taken);
        for (int i = 0; i < 6; i++) close(clients[i]);
        close(listener);
        close(ep);
    }
    return 0;
}
