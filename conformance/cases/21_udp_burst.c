// shape: self
// A burst of small datagrams on a socket that does not block: all 200 are taken, and come in order, each as a whole and to its own destination,
// whether the socket is connected or not, by send, sendto, sendmsg and sendmmsg; one that is refused in the middle takes none along.
#include "udp.h"

#define N 200
static char text[N][64];
static int length[N];

enum { SEND, SENDTO, SENDMSG, SENDMMSG, WAYS };
static const char *const WAY[WAYS] = {"send", "sendto", "sendmsg", "sendmmsg"};

// Sends all, each to one of two by turns, or to the peer; how many were taken.
static int burst(int fd, int way, int family, const int port[2]) {
    struct iovec iov[N];
    struct mmsghdr m[N];
    union address to[2] = {loopback(family, port[0]), loopback(family, port[1])};
    bool connected = way == SEND || port[0] == port[1];
    memset(m, 0, sizeof m);
    for (int i = 0; i < N; i++) {
        iov[i] = (struct iovec){text[i], length[i]};
        m[i].msg_hdr = (struct msghdr){.msg_iov = &iov[i], .msg_iovlen = 1};
        if (!connected) {
            m[i].msg_hdr.msg_name = &to[i % 2];
            m[i].msg_hdr.msg_namelen = address_length(family);
        }
    }
    int taken = 0;
    while (taken < N) {
        const union address *a = connected ? NULL : &to[taken % 2];
        ssize_t n = 0;
        switch (way) {
        case SEND: n = send(fd, text[taken], length[taken], 0); break;
        case SENDTO: n = sendto(fd, text[taken], length[taken], 0, &a->sa, a ? address_length(family) : 0); break;
        case SENDMSG: n = sendmsg(fd, &m[taken].msg_hdr, 0); break;
        default: n = sendmmsg(fd, m + taken, N - taken, 0);
        }
        if (n < 0) {
            T("%s: %s", WAY[way], ename(errno));
            break;
        }
        if (way != SENDMMSG && n != length[taken]) T("%d: %zd of %d", taken, n, length[taken]);
        taken += way == SENDMMSG ? n : 1;
    }
    return taken;
}

// Receives numbers first, first + step and so on; how many came as they were sent.
static int receive(int fd, int family, int first, int step, int from_port) {
    int right = 0;
    for (int i = first; i < N && wait_mask(fd, POLLIN, POLLIN); i += step) {
        char in[128];
        union address from;
        socklen_t n = sizeof from;
        ssize_t got = recvfrom(fd, in, sizeof in, 0, &from.sa, &n);
        right += got == length[i] && !memcmp(in, text[i], got) && n == address_length(family) &&
                 port_in(&from) == from_port;
    }
    char more;
    R("more", recv(fd, &more, 1, MSG_DONTWAIT));
    return right;
}

int main(void) {
    case_start();
    for (int i = 0; i < N; i++) {
        length[i] = i % 50 == 7 ? 0 : 4 + i * 7 % 56;
        fill(text[i], sizeof text[i], i + 1);
    }
    EACH_FAMILY(family) {
        int client = udp_bound(family), server[2] = {udp_bound(family), udp_bound(family)};
        int port[2] = {port_of(server[0]), port_of(server[1])};
        for (int i = 0; i < 2; i++) set_int(server[i], SOL_SOCKET, SO_RCVBUF, 212992);
        nonblock(client);
        for (int way = SENDTO; way < WAYS; way++) {
            T("%s to two: %d", WAY[way], burst(client, way, family, port));
            for (int i = 0; i < 2; i++) T("came: %d", receive(server[i], family, i, 2, port_of(client)));
        }
        MUST(udp_connect(client, family, port[0]));
        int peer[2] = {port[0], port[0]};
        for (int way = SEND; way < WAYS; way++) {
            T("%s to the peer: %d", WAY[way], burst(client, way, family, peer));
            T("came: %d", receive(server[0], family, 0, 1, port_of(client)));
        }
        // One that is too long, and one to nowhere, among others.
        static char long_one[65536];
        MUST(send(client, "before", 6, 0));
        R("too long", send(client, long_one, sizeof long_one, 0));
        MUST(send(client, "between", 7, 0));
        R("to port 0", udp_to(client, family, 0, "x", 1));
        MUST(send(client, "after", 5, 0));
        for (int i = 0; i < 3; i++) udp_expect("came", server[0]);
        T("%s", mask(poll1(client, POLLOUT, WAIT_MS)));
        close(client);
        for (int i = 0; i < 2; i++) close(server[i]);
    }
    return 0;
}
