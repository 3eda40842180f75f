// shape: self
// Sends and receives of nothing: they succeed, wake nobody, and are no EOF.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    char text[4];
    struct iovec none[2] = {{text, 0}, {text, 0}};
    struct msghdr empty = {.msg_iov = none, .msg_iovlen = 2};
    tcp_pair(AF_INET, ends);
    R("send", send(ends[0], "", 0, 0));
    R("write", write(ends[0], "", 0));
    R("writev", writev(ends[0], none, 2));
    R("writev of no parts", writev(ends[0], none, 0));
    R("sendmsg", sendmsg(ends[0], &empty, 0));
    R("sendto", sendto(ends[0], NULL, 0, 0, NULL, 0));
    T("the peer sees: %s", mask(poll1(ends[1], POLLIN | POLLRDHUP, QUIET_MS)));
    R("read of 0, nothing there", read(ends[1], text, 0));
    R("readv of no parts", readv(ends[1], none, 0));
    send_text(ends[0], "x");
    wait_bytes(ends[1], 1);
    R("recv of 0", recv(ends[1], text, 0, 0));
    R("read of 0", read(ends[1], text, 0));
    R("readv of 0", readv(ends[1], none, 2));
    R("the byte is there", recv(ends[1], text, 4, 0));
    R("recv of 0 DONTWAIT, nothing there", recv(ends[1], text, 0, MSG_DONTWAIT));
    close(ends[0]);
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    R("recv of 0 at EOF", recv(ends[1], text, 0, 0));
    R("recv at EOF", recv(ends[1], text, 4, 0));
    return 0;
}
