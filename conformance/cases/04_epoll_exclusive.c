// shape: self
// EPOLLEXCLUSIVE: what may be combined with it, and that every connection is still found.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET);
    nonblock(listener);
    int a = MUST(epoll_create1(0)), b = MUST(epoll_create1(0));
    R("with ONESHOT", ep_ctl(a, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    R("with RDHUP", ep_ctl(a, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE | EPOLLRDHUP, 1));
    R("ADD", ep_ctl(a, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE, 1));
    R("ADD again", ep_ctl(a, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE, 1));
    R("MOD", ep_ctl(a, EPOLL_CTL_MOD, listener, EPOLLIN, 1));
    R("MOD exclusive", ep_ctl(a, EPOLL_CTL_MOD, listener, EPOLLIN | EPOLLEXCLUSIVE, 1));
    R("ADD edge, other epoll", ep_ctl(b, EPOLL_CTL_ADD, listener, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 2));
    EP_QUIET("a", a);
    EP_QUIET("b", b);
    // Nobody waits, so both may have it; whoever looks finds it, level-triggered until it is taken.
    int client = connect_to(AF_INET, port_of(listener));
    wait_mask(listener, POLLIN, POLLIN);
    ep_show("a", a, WAIT_MS);
    ep_show("a again", a, WAIT_MS);
    close(MUST(accept(listener, NULL, NULL)));
    EP_QUIET("a, taken", a);
    R("DEL", ep_ctl(a, EPOLL_CTL_DEL, listener, 0, 0));
    R("DEL", ep_ctl(b, EPOLL_CTL_DEL, listener, 0, 0));
    close(client);
    return 0;
}
