// shape: self
// close takes a socket out of every epoll, but only with its last descriptor.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0)), second = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    int low = ends[1];
    ends[1] = MUST(dup2(low, 150)); // a number that nothing else gets by itself
    close(low);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    EP_ADD(second, ends[1], EPOLLIN, 2);
    int copy = MUST(dup(ends[1])), number = ends[1];
    send_text(ends[0], "x");
    ep_show("open", ep, WAIT_MS);
    close(ends[1]);
    ep_show("a duplicate is open", ep, WAIT_MS);
    R("DEL by the closed number", ep_ctl(ep, EPOLL_CTL_DEL, number, 0, 0));
    R("ADD of the duplicate", ep_ctl(second, EPOLL_CTL_ADD, copy, EPOLLIN, 3));
    ep_show("second epoll", second, WAIT_MS);
    close(copy);
    EP_QUIET("closed", ep);
    EP_QUIET("closed, second", second);
    // The number is used again: the new socket is not in the epoll by itself.
    int again[2];
    tcp_pair(AF_INET, again);
    int moved = MUST(dup2(again[1], number));
    send_text(again[0], "y");
    wait_bytes(moved, 1);
    EP_QUIET("number used again", ep);
    R("ADD", ep_ctl(ep, EPOLL_CTL_ADD, moved, EPOLLIN, 4));
    ep_show("added", ep, WAIT_MS);
    return 0;
}
