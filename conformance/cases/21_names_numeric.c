// shape: self
// getaddrinfo of numbers, with and without services, for each family; what is no number is refused with AI_NUMERICHOST.
#include "names.h"

int main(void) {
    case_start();
    const char *nodes[] = {"127.0.0.1", "127.1", "0x7f.1", "1.2.3.4", "::1", "fe80::1", "::ffff:1.2.3.4", "1.2.3.256", "1.2.3.4.5", "name", ""};
    int families[] = {AF_UNSPEC, AF_INET, AF_INET6};
    for (unsigned f = 0; f < 3; f++)
        for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
            look(nodes[i], "80", families[f], SOCK_STREAM, AI_NUMERICHOST);
    look("127.0.0.1", NULL, AF_UNSPEC, 0, AI_NUMERICHOST);
    look("127.0.0.1", "80", AF_UNSPEC, 0, AI_CANONNAME);
    look("::1", "http", AF_UNSPEC, SOCK_STREAM, 0);
    look("::1", "80", AF_UNSPEC, SOCK_DGRAM, 0);
    look("1.2.3.4", "80", AF_INET6, SOCK_STREAM, AI_V4MAPPED);
    look("1.2.3.4", "80", AF_INET6, SOCK_STREAM, AI_V4MAPPED | AI_ALL);
    look("127.0.0.1", "http", AF_UNSPEC, SOCK_STREAM, AI_NUMERICSERV);
    look("127.0.0.1", "65536", AF_UNSPEC, SOCK_STREAM, 0);
    // The families that the namespace of the sockets has, not those of an empty one.
    look("127.0.0.1", "80", AF_INET, SOCK_STREAM, AI_ADDRCONFIG);
    look("127.0.0.1", "80", AF_UNSPEC, SOCK_STREAM, AI_ADDRCONFIG);
    look("::1", "80", AF_INET6, SOCK_STREAM, AI_ADDRCONFIG);
    look("::1", "80", AF_UNSPEC, SOCK_STREAM, AI_ADDRCONFIG);
    return 0;
}
