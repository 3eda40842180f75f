// shape: pair
// A server that answers whoever asks; a client that asks again when an answer is lost, as UDP may.
#include "udp.h"

#define ROUNDS 400
static char out[9000], in[9000];

static void server_role(int listener) {
    int fd = udp_bound(AF_INET);
    tell_number("udp", port_of(fd));
    union address from;
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t n = MUST(recvfrom(fd, in, sizeof in, 0, &from.sa, &length));
        if (n == 0) break;
        MUST(sendto(fd, in, n, 0, &from.sa, length));
    }
    T("server done");
    close(listener);
}

static void client_role(int port) {
    (void)port;
    int fd = udp_socket(AF_INET), right = 0;
    MUST(udp_connect(fd, AF_INET, await_number("udp")));
    for (int i = 0; i < ROUNDS; i++) {
        int length = 4 + (i * 131) % 8900;
        fill(out, length, i);
        memcpy(out, &i, 4);
        for (int tries = 0; tries < 50; tries++) {
            MUST(send(fd, out, length, 0));
            ssize_t n = 0;
            while (poll1(fd, POLLIN, 500) & POLLIN) {
                n = MUST(recv(fd, in, sizeof in, 0));
                if (!memcmp(in, &i, 4)) break;
                n = 0;
            }
            if (n == 0) continue;
            right += n == length && !memcmp(in, out, n);
            break;
        }
    }
    T("right answers %d of %d", right, ROUNDS);
    MUST(send(fd, "", 0, 0));
}

PAIR_MAIN(AF_INET)
