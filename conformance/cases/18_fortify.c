// shape: self
// cc: -O2 -D_FORTIFY_SOURCE=2
// What distributions build: __recv_chk, __recvfrom_chk, __read_chk, __poll_chk, __ppoll_chk, __fdelt_chk.
#include "case.h"

int main(int argc, char **argv) {
    (void)argv;
    case_start();
    int ends[2];
    char text[32];
    size_t unknown = sizeof text - (argc > 1000); // not a constant, so the checked variants are called
    tcp_pair(AF_INET, ends);
    struct pollfd p[2] = {{ends[1], POLLIN, 0}, {ends[0], POLLIN, 0}};
    nfds_t two = 2 - (argc > 1000);
    R("poll", poll(p, two, 10));
    for (int i = 0; i < 4; i++) {
        send_text(ends[0], "fortified");
        wait_bytes(ends[1], 9);
        struct timespec t = {10, 0};
        union address a;
        socklen_t length = sizeof a;
        R("poll", poll(p, two, WAIT_MS));
        R("ppoll", ppoll(p, two, &t, NULL));
        if (i == 0) R("recv", recv(ends[1], text, unknown, 0));
        if (i == 1) R("recvfrom", recvfrom(ends[1], text, unknown, 0, &a.sa, &length));
        if (i == 2) R("read", read(ends[1], text, unknown));
        if (i == 3) R("recv PEEK", recv(ends[1], text, unknown, MSG_PEEK));
    }
    R("recv", recv(ends[1], text, unknown, MSG_DONTWAIT));
    R("recv", recv(ends[1], text, unknown, MSG_DONTWAIT));
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[1] + (argc > 1000), &set);
    struct timeval none = {0, 0};
    R("select", select(ends[1] + 1, &set, NULL, NULL, &none));
    return 0;
}
