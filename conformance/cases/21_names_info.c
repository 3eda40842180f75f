// shape: self
// Names and numbers by getnameinfo, both and either; buffers that are too small; families that it does not know.
#include "names.h"

static void name_of(const char *what, const void *address, socklen_t length, int host, int service, int flags) {
    char h[1025] = "-", s[64] = "-";
    errno = 0;
    int r = getnameinfo(address, length, host ? h : NULL, host, service ? s : NULL, service, flags);
    T("%s flags %d: %s %s %s", what, flags, eai(r), r ? "" : h, r ? "" : s);
}

int main(void) {
    case_start();
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(443), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in6 link = {.sin6_family = AF_INET6, .sin6_port = htons(443), .sin6_scope_id = 1};
    inet_pton(AF_INET6, "fe80::1", &link.sin6_addr);
    struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "/x"};
    int flags[] = {0, NI_NUMERICHOST, NI_NUMERICSERV, NI_NUMERICHOST | NI_NUMERICSERV, NI_NAMEREQD, NI_NAMEREQD | NI_NUMERICHOST, NI_NOFQDN, NI_DGRAM, 0x4000};
    for (unsigned i = 0; i < sizeof flags / sizeof *flags; i++) {
        name_of("127.0.0.1:80", &v4, sizeof v4, 1025, 64, flags[i]);
        name_of("127.0.0.1", &v4, sizeof v4, 1025, 0, flags[i]);
        name_of(":80", &v4, sizeof v4, 0, 64, flags[i]);
    }
    name_of("[::1]:443", &v6, sizeof v6, 1025, 64, 0);
    name_of("[::1]:443", &v6, sizeof v6, 1025, 64, NI_NUMERICHOST);
    // Its interface has a name in the namespace of the sockets.
    name_of("fe80::1%1", &link, sizeof link, 1025, 64, NI_NUMERICHOST);
    name_of("unix", &local, sizeof local, 1025, 64, NI_NUMERICHOST | NI_NUMERICSERV);
    name_of("neither", &v4, sizeof v4, 0, 0, 0);
    name_of("host 3 bytes", &v4, sizeof v4, 3, 0, 0);
    name_of("host 9 bytes", &v4, sizeof v4, 9, 0, 0);
    name_of("host 10 bytes", &v4, sizeof v4, 10, 0, 0);
    name_of("number 3 bytes", &v4, sizeof v4, 3, 0, NI_NUMERICHOST);
    name_of("service 2 bytes", &v4, sizeof v4, 0, 2, 0);
    name_of("short address", &v4, 8, 1025, 64, 0);
    name_of("no address", &v4, 0, 1025, 64, 0);
    v4.sin_family = 99;
    name_of("family 99", &v4, sizeof v4, 1025, 64, 0);
    return 0;
}
