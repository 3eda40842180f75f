// shape: pair
// Ten thousand small pipelined requests of odd lengths, as redis-benchmark -P sends them, answered in order.
#include "case.h"

enum { COUNT = 10000, BATCH = 50 };
static unsigned length_of(int i) { return 1 + (i * 31) % 90; }
static void server_role(int listener) {
    int fd = MUST(accept(listener, NULL, NULL)), served = 0;
    MUST(set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1));
    unsigned char length;
    char text[100];
    while (recv_all(fd, &length, 1) == 1 && recv_all(fd, text, length) == length) {
        struct iovec v[2] = {{&length, 1}, {text, length}};
        MUST(writev(fd, v, 2));
        served++;
    }
    T("served %d", served);
}
static void client_role(int port) {
    int fd = connect_to(AF_INET, port), good = 0;
    MUST(set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1));
    for (int i = 0; i < COUNT; i += BATCH) {
        for (int k = i; k < i + BATCH; k++) {
            char message[100];
            message[0] = length_of(k);
            fill(message + 1, length_of(k), k);
            MUST(send_all(fd, message, 1 + length_of(k)));
        }
        for (int k = i; k < i + BATCH; k++) {
            char message[100], back[100];
            fill(message + 1, length_of(k), k);
            good += recv_all(fd, back, 1 + length_of(k)) == 1 + length_of(k) && back[0] == (char)length_of(k) &&
                    !memcmp(message + 1, back + 1, length_of(k));
        }
    }
    T("good %d", good);
}
PAIR_MAIN(AF_INET)
