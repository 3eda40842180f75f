// shape: self
// An IPv6 socket speaks IPv4 by mapped addresses: connect and bind to ::ffff:127.0.0.1; V6ONLY refuses; :: means loopback.
#include "case.h"

static union address mapped(int port) {
    union address a = loopback(AF_INET6, port);
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &a.in6.sin6_addr);
    return a;
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), fd = tcp_socket(AF_INET6);
    union address a = mapped(port_of(listener));
    char text[64];
    R("connect", connect(fd, &a.sa, sizeof a.in6));
    socklen_t length = sizeof a;
    MUST(getsockname(fd, &a.sa, &length));
    T("own %s", inet_ntop(AF_INET6, &a.in6.sin6_addr, text, sizeof text));
    length = sizeof a;
    MUST(getpeername(fd, &a.sa, &length));
    T("peer %s", inet_ntop(AF_INET6, &a.in6.sin6_addr, text, sizeof text));
    length = sizeof a;
    int taken = MUST(accept(listener, &a.sa, &length));
    T("seen as %s", family_name(a.sa.sa_family));
    send_text(taken, "x");
    expect_text("client", fd, 1);
    close(fd);
    fd = tcp_socket(AF_INET6);
    MUST(set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    a = mapped(port_of(listener));
    R("connect with V6ONLY", connect(fd, &a.sa, sizeof a.in6));
    R("bind with V6ONLY", bind(fd, &a.sa, sizeof a.in6));
    close(fd);

    int six = tcp_socket(AF_INET6);
    a = mapped(private_port());
    R("bind", bind(six, &a.sa, sizeof a.in6));
    R("listen", listen(six, 4));
    fd = tcp_socket(AF_INET);
    R("inet to it", connect_fd(fd, AF_INET, port_of(six)));
    int other = tcp_socket(AF_INET6);
    R("inet6 to it", connect_fd(other, AF_INET6, port_of(six)));
    length = sizeof a;
    taken = RF("accept", accept(six, &a.sa, &length));
    T("from %s", inet_ntop(AF_INET6, &a.in6.sin6_addr, text, sizeof text));
    close(fd);
    EACH_FAMILY(family) {
        int l = make_listener(family), c = tcp_socket(family);
        a = any_address(family, port_of(l));
        R("connect to the unspecified address", connect(c, &a.sa, address_length(family)));
        T("it is loopback's port: %d", peer_port_of(c) == port_of(l));
        close(c);
        close(l);
    }
    return 0;
}
