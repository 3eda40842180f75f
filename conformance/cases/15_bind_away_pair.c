// shape: pair
// An address that is not here cannot be had, whoever has its port here.
#include "case.h"

static const int TYPES[] = {SOCK_STREAM, SOCK_DGRAM};

static void bind_at(const char *what, int family, int type, const char *where, int port) {
    int fd = MUST(socket(family, type, 0));
    union address a = any_address(family, port);
    if (where) inet_pton(family, where, family == AF_INET6 ? (void *)&a.in6.sin6_addr : (void *)&a.in.sin_addr);
    R(what, bind(fd, &a.sa, address_length(family)));
    close(fd);
}

static void server_role(int listener) {
    for (int i = 0; i < 4; i++) {
        union address a = any_address(FAMILIES[i / 2], 0);
        int fd = MUST(socket(FAMILIES[i / 2], TYPES[i % 2], 0));
        MUST(bind(fd, &a.sa, address_length(FAMILIES[i / 2])));
        char name[16];
        sprintf(name, "any%d", i);
        tell_number(name, port_of(fd));
    }
    await("done");
    close(listener);
}

static void client_role(int port) {
    (void)port;
    for (int i = 0; i < 4; i++) {
        char name[16];
        sprintf(name, "any%d", i);
        int family = FAMILIES[i / 2], type = TYPES[i % 2], taken = await_number(name);
        T("%s, type %d", family_name(family), type);
        bind_at("not here", family, type, family == AF_INET6 ? "2001:db8::1" : "192.0.2.1", taken);
        bind_at("loopback", family, type, family == AF_INET6 ? "::1" : "127.0.0.1", taken);
        bind_at("all", family, type, NULL, taken);
    }
    tell("done");
}

PAIR_MAIN(AF_INET)
