// shape: self
// A datagram is received whole or cut, never in parts and never with another: every size, peeks, truncation, FIONREAD.
#include "udp.h"

static char out[65536], in[70000];

int main(void) {
    case_start();
    static const int sizes[] = {0, 1, 1472, 16255, 16256, 16257, 32640, 32641, 49024, 65000, 65507};
    EACH_FAMILY(family) {
        int ends[2];
        udp_pair(family, ends);
        for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            fill(out, sizes[i], i);
            ssize_t sent = send(ends[0], out, sizes[i], 0);
            MUST(wait_mask(ends[1], POLLIN, POLLIN));
            ssize_t got = recv(ends[1], in, sizeof in, 0);
            T("%d: sent %zd got %zd %s", sizes[i], sent, got,
              sum(in, got) == sum(out, sizes[i]) ? "the same" : "OTHERS");
        }
        // Cut in the middle of a long one, and the next is untouched.
        fill(out, 60000, 9);
        MUST(send(ends[0], out, 60000, 0));
        MUST(send(ends[0], "next", 4, 0));
        wait_mask(ends[1], POLLIN, POLLIN);
        T("FIONREAD %d", ({ int n = -1; ioctl(ends[1], FIONREAD, &n); n; }));
        R("peek", recv(ends[1], in, 10, MSG_PEEK));
        R("peek for the length", recv(ends[1], in, 10, MSG_PEEK | MSG_TRUNC));
        R("peek of nothing for the length", recv(ends[1], NULL, 0, MSG_PEEK | MSG_TRUNC));
        struct iovec parts[2] = {{in, 20000}, {in + 30000, 20000}};
        struct msghdr m = {.msg_iov = parts, .msg_iovlen = 2};
        R("recvmsg", recvmsg(ends[1], &m, 0));
        T("flags %s, %s", m.msg_flags == MSG_TRUNC ? "TRUNC" : m.msg_flags ? "?" : "0",
          !memcmp(in, out, 20000) && !memcmp(in + 30000, out + 20000, 20000) ? "the same" : "OTHERS");
        m.msg_flags = -1;
        R("recvmsg", recvmsg(ends[1], &m, 0));
        T("flags %d '%.4s'", m.msg_flags, in);
        R("empty again", recv(ends[1], in, 10, MSG_DONTWAIT));
        T("FIONREAD %d", ({ int n = -1; ioctl(ends[1], FIONREAD, &n); n; }));
        MUST(send(ends[0], "abcdef", 6, 0));
        wait_mask(ends[1], POLLIN, POLLIN);
        R("with MSG_TRUNC", recv(ends[1], in, 2, MSG_TRUNC));
        MUST(send(ends[0], "abcdef", 6, 0));
        wait_mask(ends[1], POLLIN, POLLIN);
        R("into nothing", recv(ends[1], in, 0, 0));
        R("it is gone", recv(ends[1], in, 10, MSG_DONTWAIT));
        MUST(send(ends[0], "wait", 4, 0));
        R("WAITALL takes what comes", recv(ends[1], in, 100, MSG_WAITALL));
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
