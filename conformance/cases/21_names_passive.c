// shape: self
// A service without a node: for servers (AI_PASSIVE) and for clients, each family, and a listener on every answer.
#include "names.h"

int main(void) {
    case_start();
    int families[] = {AF_UNSPEC, AF_INET, AF_INET6}, flags[] = {0, AI_PASSIVE, AI_PASSIVE | AI_ADDRCONFIG, AI_ADDRCONFIG, AI_PASSIVE | AI_NUMERICSERV};
    for (unsigned f = 0; f < 5; f++)
        for (unsigned a = 0; a < 3; a++) {
            look(NULL, "80", families[a], SOCK_STREAM, flags[f]);
            look(NULL, "80", families[a], 0, flags[f]);
        }
    look(NULL, "https", AF_UNSPEC, SOCK_STREAM, AI_PASSIVE);
    look("*", "80", AF_UNSPEC, SOCK_STREAM, AI_PASSIVE);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found;
    T("getaddrinfo %s", eai(getaddrinfo(NULL, "0", &hints, &found)));
    for (struct addrinfo *a = found; a; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        RF("socket", fd);
        R("bind", bind(fd, a->ai_addr, a->ai_addrlen));
        R("listen", listen(fd, 4));
        close(fd);
    }
    freeaddrinfo(found);
    return 0;
}
