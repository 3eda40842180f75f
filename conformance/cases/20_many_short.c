// shape: pair
// A thousand short connections, one after another, some ended by the client, some by the server, some by a reset.
#include "case.h"

enum { COUNT = 1000 };
static void server_role(int listener) {
    int served = 0;
    for (int i = 0; i < COUNT; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        char text[8];
        if (recv_all(fd, text, 4) == 4 && send_all(fd, text, 4) == 4) served++;
        if (i % 3 == 0) recv(fd, text, 1, 0); // the client closes first
        close(fd);
    }
    T("served %d", served);
}
static void client_role(int port) {
    int good = 0;
    for (int i = 0; i < COUNT; i++) {
        int fd = connect_to(AF_INET, port), back = -1;
        MUST(send_all(fd, &i, 4));
        good += recv_all(fd, &back, 4) == 4 && back == i;
        if (i % 5 == 0)
            close_rst(fd);
        else
            close(fd);
    }
    T("good %d", good);
}
PAIR_MAIN(AF_INET)
