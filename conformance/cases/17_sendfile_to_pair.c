// shape: server
// A static file server as nginx is one: headers with MSG_MORE, then sendfile of 3 MB on a non-blocking socket, with EPOLLOUT.
#include "case.h"

enum { BYTES = 3 << 20 };
static void server_role(int listener) {
    static char block[BYTES];
    int file = MUST(memfd_create("file", 0)), ep = MUST(epoll_create1(0));
    fill(block, sizeof block, 41);
    MUST(write(file, block, sizeof block));
    for (int i = 0; i < 2; i++) {
        int fd = MUST(accept4(listener, NULL, NULL, SOCK_NONBLOCK));
        wait_mask(fd, POLLIN, POLLIN);
        expect_text("request", fd, 3);
        MUST(set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1));
        MUST(send(fd, "header\n", 7, MSG_MORE));
        EP_ADD(ep, fd, EPOLLOUT | EPOLLET, 1);
        off_t offset = 0;
        while (offset < BYTES) {
            ssize_t n = sendfile(fd, file, &offset, BYTES - offset);
            if (n > 0) continue;
            if (n == 0 || errno != EAGAIN) {
                R("sendfile", n);
                break;
            }
            struct epoll_event e;
            if (epoll_wait(ep, &e, 1, WAIT_MS) != 1) {
                T("no room in %d ms", WAIT_MS);
                break;
            }
        }
        T("sent %ld", (long)offset);
        close(fd);
    }
}
static void client_role(int port) {
    for (int i = 0; i < 2; i++) {
        int fd = connect_to(AF_INET, port);
        send_text(fd, "GET");
        msleep(100); // lets the server run into EAGAIN
        expect_text("client", fd, 7);
        drain("file", fd);
        close(fd);
    }
}
PAIR_MAIN(AF_INET)
