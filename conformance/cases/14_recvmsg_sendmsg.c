// shape: self
// sendmsg and recvmsg with parts, names, control buffers; sendto with an address; recvfrom's address; sendmmsg, recvmmsg.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    char a[4], b[6], name[64], control[64];
    struct iovec out[3] = {{"one", 3}, {"", 0}, {"seven", 5}}, in[2] = {{a, sizeof a}, {b, sizeof b}};
    struct msghdr m = {.msg_iov = out, .msg_iovlen = 3};
    R("sendmsg", sendmsg(ends[0], &m, 0));
    wait_bytes(ends[1], 8);
    m = (struct msghdr){name, sizeof name, in, 2, control, sizeof control, -1};
    R("recvmsg", recvmsg(ends[1], &m, 0));
    T("name %u control %zu flags %d, %.4s %.4s", m.msg_namelen, m.msg_controllen, m.msg_flags, a, b);
    union address to = loopback(AF_INET, 9);
    R("sendto an address", sendto(ends[0], "addr", 4, 0, &to.sa, sizeof to.in));
    wait_bytes(ends[1], 4);
    socklen_t length = sizeof to;
    R("recvfrom", recvfrom(ends[1], a, 4, 0, &to.sa, &length));
    T("address length %u", length);
    m = (struct msghdr){.msg_iov = out, .msg_iovlen = 2000};
    R("too many parts", sendmsg(ends[0], &m, 0));
    out[1].iov_len = -1;
    m.msg_iovlen = 3;
    R("a negative part", sendmsg(ends[0], &m, MSG_NOSIGNAL));
    R("a bad fd", sendmsg(999, &m, 0));
    R("a pipe", recvmsg(0, &m, 0));
    out[1].iov_len = 0;
    struct mmsghdr many[3] = {{.msg_hdr = {.msg_iov = out, .msg_iovlen = 1}},
                              {.msg_hdr = {.msg_iov = out + 2, .msg_iovlen = 1}},
                              {.msg_hdr = {.msg_iov = out, .msg_iovlen = 3}}};
    R("sendmmsg", sendmmsg(ends[0], many, 3, 0));
    T("lengths %u %u %u", many[0].msg_len, many[1].msg_len, many[2].msg_len);
    wait_bytes(ends[1], 16);
    struct mmsghdr back[2] = {{.msg_hdr = {.msg_iov = in, .msg_iovlen = 1}},
                              {.msg_hdr = {.msg_iov = in + 1, .msg_iovlen = 1}}};
    R("recvmmsg", recvmmsg(ends[1], back, 2, 0, NULL));
    T("lengths %u %u", back[0].msg_len, back[1].msg_len);
    expect_text("rest", ends[1], 6);
    R("MSG_MORE", send(ends[0], "more", 4, MSG_MORE));
    R("and the end", send(ends[0], "end", 3, MSG_EOR));
    expect_text("together", ends[1], 7);
    return 0;
}
