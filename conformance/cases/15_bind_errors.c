// shape: self
// What bind refuses: an address that is not here, a wrong family, a short one, a bad fd.
#include "case.h"

int main(void) {
    case_start();
    int fd = tcp_socket(AF_INET), six = tcp_socket(AF_INET6);
    union address v4 = loopback(AF_INET, 0), v6 = loopback(AF_INET6, 0), away = v4, away6 = v6;
    inet_pton(AF_INET, "192.0.2.1", &away.in.sin_addr);
    inet_pton(AF_INET6, "2001:db8::1", &away6.in6.sin6_addr);
    R("not here", bind(fd, &away.sa, sizeof away.in));
    R("not here, inet6", bind(six, &away6.sa, sizeof away6.in6));
    R("inet6 on inet", bind(fd, &v6.sa, sizeof v6.in6));
    R("inet on inet6", bind(six, &v4.sa, sizeof v4.in));
    R("short", bind(fd, &v4.sa, 8));
    R("short, inet6", bind(six, &v6.sa, 16));
    R("a bad fd", bind(999, &v4.sa, sizeof v4.in));
    R("a pipe", bind(0, &v4.sa, sizeof v4.in));
    away.in.sin_addr.s_addr = htonl(0x7f000002);
    away.in.sin_port = htons(private_port());
    R("127.0.0.2", bind(fd, &away.sa, sizeof away.in));
    socklen_t length = sizeof v4;
    MUST(getsockname(fd, &v4.sa, &length));
    T("it is 127.0.0.2: %d", v4.in.sin_addr.s_addr == htonl(0x7f000002));
    MUST(listen(fd, 4));
    int client = tcp_socket(AF_INET);
    R("connect to 127.0.0.1", connect_fd(client, AF_INET, port_of(fd)));
    R("connect to 127.0.0.2", connect(client, &v4.sa, sizeof v4.in));
    R("after it all, inet6 binds", bind(six, &v6.sa, sizeof v6.in6));
    return 0;
}
