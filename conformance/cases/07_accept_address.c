// shape: self
// The address that accept gives: whole, cut short, not asked for.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family), clients[4];
        for (int i = 0; i < 4; i++) clients[i] = connect_to(family, port_of(listener));
        union address a;
        socklen_t lengths[4] = {sizeof a, 8, 0, sizeof a};
        for (int i = 0; i < 4; i++) {
            memset(&a, 0xee, sizeof a);
            int fd = i == 3 ? accept(listener, NULL, &lengths[i]) : accept(listener, &a.sa, &lengths[i]);
            RF("accept", fd);
            T("length is the address': %d", lengths[i] == address_length(family));
            if (i < 2) T("family %s, the client's port: %d", family_name(a.sa.sa_family), port_in(&a) == port_of(clients[i]));
            if (i == 0) T("loopback: %d", family == AF_INET ? a.in.sin_addr.s_addr == htonl(INADDR_LOOPBACK) : IN6_IS_ADDR_LOOPBACK(&a.in6.sin6_addr));
            T("byte 8 touched: %d", ((unsigned char *)&a)[8] != 0xee);
            close(fd);
        }
        for (int i = 0; i < 4; i++) close(clients[i]);
        close(listener);
    }
    return 0;
}
