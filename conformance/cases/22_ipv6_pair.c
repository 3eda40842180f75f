// shape: pair
// Two programs over ::1, with scope and flow fields that read zero, and IPv6 options as node and curl set them.
#include "case.h"

static void server_role(int listener) {
    union address a;
    socklen_t length = sizeof a;
    int fd = MUST(accept(listener, &a.sa, &length));
    T("flow %u scope %u loopback %d length %d", a.in6.sin6_flowinfo, a.in6.sin6_scope_id,
      IN6_IS_ADDR_LOOPBACK(&a.in6.sin6_addr), length == sizeof a.in6);
    R("V6ONLY of an accepted one", get_int(fd, IPPROTO_IPV6, IPV6_V6ONLY));
    expect_text("server", fd, 3);
    send_text(fd, "six");
    drain("server", fd);
}
static void client_role(int port) {
    int fd = tcp_socket(AF_INET6);
    R("TCLASS", set_int(fd, IPPROTO_IPV6, IPV6_TCLASS, 0x20));
    R("connect", connect_fd(fd, AF_INET6, port));
    R("TCLASS reads back", get_int(fd, IPPROTO_IPV6, IPV6_TCLASS));
    send_text(fd, "ask");
    expect_text("client", fd, 3);
    close(fd);
}
PAIR_MAIN(AF_INET6)
