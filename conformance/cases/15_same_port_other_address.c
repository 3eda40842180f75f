// shape: self
// One port on two addresses and in two families: two listeners, each gets its own.
#include "case.h"

static int listen_at(union address a, const char *what) {
    int fd = tcp_socket(a.sa.sa_family);
    if (a.sa.sa_family == AF_INET6) MUST(set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    R(what, bind(fd, &a.sa, address_length(a.sa.sa_family)));
    MUST(listen(fd, 4));
    return fd;
}

int main(void) {
    case_start();
    int port = private_port();
    union address second = loopback(AF_INET, port);
    second.in.sin_addr.s_addr = htonl(0x7f000002);
    int a = listen_at(loopback(AF_INET, port), "127.0.0.1"), b = listen_at(second, "127.0.0.2");
    int c = listen_at(any_address(AF_INET6, port), "[::]");
    int fd = tcp_socket(AF_INET);
    union address any = any_address(AF_INET, port);
    R("0.0.0.0 beside them", bind(fd, &any.sa, sizeof any.in));
    close(fd);
    fd = connect_to(AF_INET, port);
    T("%s %s %s", mask(wait_mask(a, POLLIN, POLLIN)), mask(poll1(b, POLLIN, 0)), mask(poll1(c, POLLIN, 0)));
    close(accept(a, NULL, NULL));
    close(fd);
    fd = connect_to(AF_INET6, port);
    T("%s %s %s", mask(wait_mask(c, POLLIN, POLLIN)), mask(poll1(a, POLLIN, 0)), mask(poll1(b, POLLIN, 0)));
    close(accept(c, NULL, NULL));
    close(fd);
    fd = tcp_socket(AF_INET);
    R("connect to 127.0.0.2", connect(fd, &second.sa, sizeof second.in));
    T("%s %s %s", mask(wait_mask(b, POLLIN, POLLIN)), mask(poll1(a, POLLIN, 0)), mask(poll1(c, POLLIN, 0)));
    return 0;
}
