// shape: self
// Every error that getaddrinfo gives without asking a name server.
#include "names.h"

int main(void) {
    case_start();
    look(NULL, NULL, AF_UNSPEC, SOCK_STREAM, 0);
    look("localhost", "no-such-service", AF_UNSPEC, SOCK_STREAM, 0);
    look("localhost", "no-such-service", AF_UNSPEC, SOCK_STREAM, AI_NUMERICSERV);
    look("localhost", "80", 77, SOCK_STREAM, 0);
    look("localhost", "80", AF_UNIX, SOCK_STREAM, 0);
    look("localhost", "80", AF_UNSPEC, 77, 0);
    look("localhost", "80", AF_UNSPEC, SOCK_SEQPACKET, 0);
    look("localhost", "http", AF_UNSPEC, SOCK_RAW, 0);
    look("localhost", "80", AF_UNSPEC, SOCK_STREAM, 0x40000000);
    look(NULL, "80", AF_UNSPEC, SOCK_STREAM, AI_CANONNAME);
    look("name with spaces", "80", AF_UNSPEC, SOCK_STREAM, AI_NUMERICHOST);
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_UDP}, *found;
    T("stream over udp %s", eai(getaddrinfo("localhost", "80", &hints, &found)));
    hints.ai_socktype = 0, hints.ai_protocol = IPPROTO_TCP;
    int r = getaddrinfo("localhost", "80", &hints, &found);
    T("any over tcp %s", eai(r));
    if (r == 0) show(found), freeaddrinfo(found);
    static char name[20001];
    int sizes[] = {63, 64, 255, 256, 1025, 5000, 20000};
    for (int i = 0; i < 7; i++) {
        memset(name, 'a', sizes[i]);
        name[sizes[i]] = 0;
        hints = (struct addrinfo){.ai_socktype = SOCK_STREAM};
        T("%d bytes: %s, %d", sizes[i], eai(getaddrinfo(name, "80", &hints, &found)), gethostbyname(name) != NULL);
    }
    return 0;
}
