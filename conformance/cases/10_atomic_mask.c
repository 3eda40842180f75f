// shape: self
// ppoll, epoll_pwait and pselect let a pending signal in, and only while they wait; data wins without one.
#include "case.h"

static volatile sig_atomic_t handled;
static void handler(int number) {
    (void)number;
    handled++;
}

int main(void) {
    case_start();
    int ends[2], ep = MUST(epoll_create1(0));
    tcp_pair(AF_INET, ends);
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    sigset_t blocked, open;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &blocked, &open));
    sigdelset(&open, SIGUSR1);
    on_signal(SIGUSR1, handler, SA_RESTART);
    for (int ready = 0; ready < 2; ready++) {
        if (ready) {
            send_text(ends[0], "x");
            wait_bytes(ends[1], 1);
        }
        for (int how = 0; how < 6; how++) {
            sigset_t *mask_now = how % 2 ? &blocked : &open;
            struct timespec limit = {how % 2 ? 0 : 10, 50000000};
            struct pollfd p = {ends[1], POLLIN, 0};
            struct epoll_event e;
            fd_set set;
            FD_ZERO(&set);
            FD_SET(ends[1], &set);
            handled = 0;
            kill(getpid(), SIGUSR1);
            T("pending, handled %d", handled);
            if (how / 2 == 0) R("ppoll", ppoll(&p, 1, &limit, mask_now));
            if (how / 2 == 1) R("epoll_pwait", epoll_pwait(ep, &e, 1, how % 2 ? 50 : 10000, mask_now));
            if (how / 2 == 2) R("pselect", pselect(ends[1] + 1, &set, NULL, NULL, &limit, mask_now));
            T("handled %d", handled);
            sigset_t now;
            sigprocmask(SIG_BLOCK, NULL, &now);
            T("blocked again: %d", sigismember(&now, SIGUSR1));
            // Whatever is left pending is taken here, so each round starts alike.
            struct timespec none = {0, 0};
            sigtimedwait(&blocked, NULL, &none);
        }
    }
    return 0;
}
