// shape: pair
// An event loop that serves twenty connections of another program, edge-triggered, to the last EOF.
#include "case.h"

static void server_role(int listener) {
    int ep = MUST(epoll_create1(EPOLL_CLOEXEC)), open = 0, served = 0;
    size_t echoed = 0;
    nonblock(listener);
    EP_ADD(ep, listener, EPOLLIN, 0);
    while (served < 20 || open) {
        struct epoll_event e[8];
        int n = epoll_wait(ep, e, 8, WAIT_MS);
        if (n <= 0) {
            T("nothing in %d ms", WAIT_MS);
            return;
        }
        for (int i = 0; i < n; i++) {
            if (e[i].data.u64 == 0) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    EP_ADD(ep, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, fd);
                    open++, served++;
                }
                if (errno != EAGAIN) T("accept: %s", ename(errno));
                continue;
            }
            int fd = e[i].data.u64;
            char block[1000];
            ssize_t got;
            while ((got = recv(fd, block, sizeof block, 0)) > 0) {
                echoed += got;
                if (send_all(fd, block, got) != got) T("send: %s", ename(errno));
            }
            if (got == 0) {
                close(fd);
                open--;
            } else if (errno != EAGAIN) {
                T("recv: %s", ename(errno));
            }
        }
    }
    T("served %d, echoed %zu", served, echoed);
}

static void client_role(int port) {
    int fds[20];
    for (int i = 0; i < 20; i++) fds[i] = connect_to(AF_INET, port);
    for (int round = 0; round < 5; round++)
        for (int i = 0; i < 20; i++) {
            char out[3000], in[3000];
            fill(out, sizeof out, round * 20 + i);
            MUST(send_all(fds[i], out, sizeof out));
            MUST(recv_all(fds[i], in, sizeof in));
            if (memcmp(in, out, sizeof in)) T("client %d round %d: not what was sent", i, round);
        }
    for (int i = 0; i < 20; i++) {
        MUST(shutdown(fds[i], SHUT_WR));
        drain("client", fds[i]);
    }
}

PAIR_MAIN(AF_INET)
