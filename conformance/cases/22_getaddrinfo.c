// shape: self
// Numeric getaddrinfo with AI_PASSIVE, and a connection to each answer, as every client library does.
#include "case.h"

int main(void) {
    case_start();
    const char *hosts[] = {"127.0.0.1", "::1"};
    for (int i = 0; i < 2; i++) {
        struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV}, *found;
        T("getaddrinfo %d", getaddrinfo(hosts[i], "0", &hints, &found));
        int listener = MUST(socket(found->ai_family, found->ai_socktype | SOCK_CLOEXEC, found->ai_protocol));
        R("bind", bind(listener, found->ai_addr, found->ai_addrlen));
        MUST(listen(listener, 4));
        freeaddrinfo(found);
        char port[8];
        sprintf(port, "%d", port_of(listener));
        hints.ai_flags = AI_NUMERICHOST;
        T("getaddrinfo %d", getaddrinfo(hosts[i], port, &hints, &found));
        int fd = MUST(socket(found->ai_family, found->ai_socktype, found->ai_protocol));
        R("connect", connect(fd, found->ai_addr, found->ai_addrlen));
        union address a;
        socklen_t length = sizeof a;
        char host[64];
        MUST(accept(listener, &a.sa, &length));
        T("getnameinfo %d %s", getnameinfo(&a.sa, length, host, sizeof host, NULL, 0, NI_NUMERICHOST), host);
        freeaddrinfo(found);
    }
    return 0;
}
