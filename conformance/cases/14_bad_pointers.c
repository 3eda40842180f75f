// shape: self
// Null where an address is due: EFAULT, no crash, and the connection goes on. (Other addresses that are not mapped fault a guest's
// program itself, since GuestLib copies in user space; natively they are EFAULT too.)
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    char *bad = NULL, *map = (char[32]){0};
    tcp_pair(AF_INET, ends);
    R("send", send(ends[0], bad, 10, 0));
    R("write", write(ends[0], bad, 10));
    send_text(ends[0], "data");
    wait_bytes(ends[1], 4);
    R("recv", recv(ends[1], bad, 10, 0));
    struct iovec v = {bad, 10};
    R("writev", writev(ends[0], &v, 1));
    R("writev of bad parts", writev(ends[0], (struct iovec *)bad, 1));
    R("sendmsg", sendmsg(ends[0], (struct msghdr *)bad, 0));
    R("recvmsg", recvmsg(ends[1], (struct msghdr *)bad, 0));
    R("bind", bind(tcp_socket(AF_INET), (struct sockaddr *)bad, 16));
    R("connect", connect(tcp_socket(AF_INET), (struct sockaddr *)bad, 16));
    socklen_t length = 16;
    R("getsockname", getsockname(ends[0], (struct sockaddr *)bad, &length));
    R("getsockname's length", getsockname(ends[0], (struct sockaddr *)map, (socklen_t *)bad));
    R("setsockopt", setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, bad, 4));
    R("getsockopt", getsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, bad, &length));
    R("epoll_ctl", epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, ends[0], (struct epoll_event *)bad));
    R("poll", poll((struct pollfd *)bad, 1, 0));
    R("ioctl", ioctl(ends[1], FIONREAD, bad));
    expect_text("the data is still there", ends[1], 4);
    return 0;
}
