// shape: self
// ADD on a socket that is ready already reports it, level and edge; so does MOD.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "ready");
    wait_bytes(ends[1], 5);
    uint32_t how[2] = {0, EPOLLET};
    for (int i = 0; i < 2; i++) {
        int ep = MUST(epoll_create1(0));
        EP_ADD(ep, ends[1], EPOLLIN | EPOLLOUT | how[i], 1);
        ep_show("ADD", ep, WAIT_MS);
        EP_MOD(ep, ends[1], EPOLLIN | how[i], 2);
        ep_show("MOD", ep, WAIT_MS);
        MUST(ep_ctl(ep, EPOLL_CTL_DEL, ends[1], 0, 0));
        EP_QUIET("DEL", ep);
        EP_ADD(ep, ends[1], EPOLLIN | how[i], 3);
        ep_show("ADD again", ep, WAIT_MS);
        close(ep);
    }
    int listener = make_listener(AF_INET), ep = MUST(epoll_create1(0));
    int client = connect_to(AF_INET, port_of(listener));
    wait_mask(listener, POLLIN, POLLIN);
    EP_ADD(ep, listener, EPOLLIN | EPOLLET, 4);
    ep_show("listener", ep, WAIT_MS);
    EP_QUIET("listener once", ep);
    close(client);
    return 0;
}
