// shape: self
// getaddrinfo of names that are in /etc/hosts everywhere, and of this machine's own name: every flag, order of the answers included.
#include "names.h"

int main(void) {
    case_start();
    char own[256];
    MUST(gethostname(own, sizeof own));
    const char *names[] = {"localhost", own};
    for (unsigned i = 0; i < 2; i++) {
        int flags[] = {0, AI_CANONNAME, AI_PASSIVE, AI_ADDRCONFIG, AI_V4MAPPED, AI_V4MAPPED | AI_ALL, AI_V4MAPPED | AI_ADDRCONFIG, AI_NUMERICHOST};
        int families[] = {AF_UNSPEC, AF_INET, AF_INET6};
        for (unsigned f = 0; f < sizeof flags / sizeof *flags; f++)
            for (unsigned a = 0; a < 3; a++) look(names[i], "80", families[a], SOCK_STREAM, flags[f]);
        look(names[i], NULL, AF_UNSPEC, 0, 0);
        look(names[i], "http", AF_UNSPEC, SOCK_STREAM, AI_CANONNAME);
    }
    // No hints at all: the C library's own.
    struct addrinfo *found = NULL;
    int r = getaddrinfo("localhost", "443", NULL, &found);
    T("no hints: %s", eai(r));
    if (r == 0) show(found), freeaddrinfo(found);
    return 0;
}
