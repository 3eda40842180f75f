// shape: self
// TCP, a listener, pipe, eventfd, timerfd, signalfd and a Unix socket in one epoll, each made ready in turn.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], pipes[2], local[2], ep = MUST(epoll_create1(0));
    int listener = make_listener(AF_INET);
    tcp_pair(AF_INET6, ends);
    MUST(pipe(pipes));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, local));
    int event = MUST(eventfd(0, EFD_NONBLOCK));
    int timer = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    int signals = MUST(signalfd(-1, &set, SFD_NONBLOCK));
    int fds[] = {ends[1], listener, pipes[0], event, timer, signals, local[0]};
    for (int i = 0; i < 7; i++) EP_ADD(ep, fds[i], EPOLLIN, i + 1);
    EP_QUIET("nothing", ep);

    char junk[256];
    send_text(ends[0], "x");
    ep_show("tcp", ep, WAIT_MS);
    R("recv", recv(ends[1], junk, sizeof junk, 0));
    int client = connect_to(AF_INET, port_of(listener));
    ep_show("listener", ep, WAIT_MS);
    int taken = RF("accept", accept(listener, NULL, NULL));
    MUST(write(pipes[1], "x", 1));
    ep_show("pipe", ep, WAIT_MS);
    R("read", read(pipes[0], junk, sizeof junk));
    MUST(eventfd_write(event, 5));
    ep_show("eventfd", ep, WAIT_MS);
    R("read", read(event, junk, 8));
    struct itimerspec soon = {.it_value.tv_nsec = 20000000};
    MUST(timerfd_settime(timer, 0, &soon, NULL));
    ep_show("timerfd", ep, WAIT_MS);
    R("read", read(timer, junk, 8));
    kill(getpid(), SIGUSR1);
    ep_show("signalfd", ep, WAIT_MS);
    R("read", read(signals, junk, sizeof junk));
    MUST(write(local[1], "x", 1));
    ep_show("unix", ep, WAIT_MS);
    R("read", read(local[0], junk, sizeof junk));
    EP_QUIET("nothing again", ep);

    send_text(ends[0], "x");
    int second = connect_to(AF_INET, port_of(listener));
    MUST(write(pipes[1], "x", 1));
    MUST(eventfd_write(event, 5));
    MUST(write(local[1], "x", 1));
    wait_bytes(ends[1], 1);
    wait_mask(listener, POLLIN, POLLIN);
    // Ready by poll's word may reach an epoll a moment later: level-triggered, so the look is repeated until all are there.
    struct epoll_event all[8];
    for (int i = 0; i < WAIT_MS && epoll_wait(ep, all, 8, 0) < 5; i++) usleep(1000);
    ep_show("five at once", ep, WAIT_MS);
    close(client);
    close(second);
    close(taken);
    return 0;
}
