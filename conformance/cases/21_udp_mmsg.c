// shape: self
// sendmmsg and recvmmsg: lengths, addresses, empty datagrams, MSG_WAITFORONE, a timeout, more asked for than there is.
#include "udp.h"

#define N 6
int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int server = udp_bound(family), client = udp_socket(family);
        union address to = loopback(family, port_of(server)), from[N];
        static char text[N][8] = {"a", "", "ccc", "dddd", "", "ffffff"};
        char in[N][8];
        struct iovec out[N], into[N];
        struct mmsghdr m[N], g[N];
        memset(m, 0, sizeof m);
        memset(g, 0, sizeof g);
        memset(from, 0, sizeof from);
        for (int i = 0; i < N; i++) {
            out[i] = (struct iovec){text[i], strlen(text[i])};
            m[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = address_length(family), .msg_iov = &out[i], .msg_iovlen = 1};
            into[i] = (struct iovec){in[i], 4};
            g[i].msg_hdr = (struct msghdr){.msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &into[i], .msg_iovlen = 1};
        }
        R("sendmmsg", sendmmsg(client, m, N, 0));
        for (int i = 0; i < N; i++) T("%u", m[i].msg_len);
        R("recvmmsg", recvmmsg(server, g, N, 0, NULL));
        for (int i = 0; i < N; i++)
            T("%u %s %.*s from the client: %d", g[i].msg_len, g[i].msg_hdr.msg_flags == MSG_TRUNC ? "TRUNC" : "-",
              (int)g[i].msg_len, in[i], port_in(&from[i]) == port_of(client));
        R("nothing there", recvmmsg(server, g, N, MSG_DONTWAIT, NULL));
        MUST(sendmmsg(client, m, 2, 0));
        wait_mask(server, POLLIN, POLLIN);
        msleep(20);
        R("for one", recvmmsg(server, g, N, MSG_WAITFORONE, NULL));
        MUST(sendmmsg(client, m, 1, 0));
        struct timespec soon = {0, 1000000};
        int64_t start = now_ms();
        set_int(server, SOL_SOCKET, SO_RCVLOWAT, 1);
        R("with a timeout", recvmmsg(server, g, 1, 0, &soon));
        T("promptly: %d", now_ms() - start < 5000);
        to.sa.sa_family = AF_UNIX;
        R("the first is wrong", sendmmsg(client, m, 2, 0));
        R("of nothing", sendmmsg(client, m, 0, 0));
        close(server);
        close(client);
    }
    return 0;
}
