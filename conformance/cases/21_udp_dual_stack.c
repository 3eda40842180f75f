// shape: self
// An IPv6 socket hears and speaks IPv4 as mapped addresses, unless it is V6ONLY; an IPv4 address is taken as it is.
#include "udp.h"

static union address mapped_loopback(int port) {
    union address a = loopback(AF_INET6, port);
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &a.in6.sin6_addr);
    return a;
}

int main(void) {
    case_start();
    int six = udp_socket(AF_INET6);
    union address any = any_address(AF_INET6, 0), from;
    R("bind", bind(six, &any.sa, sizeof any.in6));
    int port = port_of(six), four = udp_bound(AF_INET);
    R("to it by IPv4", udp_to(four, AF_INET, port, "four", 4));
    char bytes[16], text[64];
    socklen_t length = sizeof from;
    R("recvfrom", recvfrom(six, bytes, 16, 0, &from.sa, &length));
    T("from %s, family %s", inet_ntop(AF_INET6, &from.in6.sin6_addr, text, sizeof text), family_name(from.sa.sa_family));
    R("answer", sendto(six, "mapped", 6, 0, &from.sa, length));
    udp_expect("four", four);
    union address plain = loopback(AF_INET, port_of(four));
    R("an IPv4 address", sendto(six, "plain", 5, 0, &plain.sa, sizeof plain.in));
    udp_expect("four", four);
    R("connect to an IPv4 address", connect(six, &plain.sa, sizeof plain.in));
    length = sizeof from;
    R("getpeername", getpeername(six, &from.sa, &length));
    T("%s %s", family_name(from.sa.sa_family), inet_ntop(AF_INET6, &from.in6.sin6_addr, text, sizeof text));
    R("send", send(six, "connected", 9, 0));
    udp_expect("four", four);
    int only = udp_socket(AF_INET6);
    R("V6ONLY", set_int(only, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    MUST(bind(only, &any.sa, sizeof any.in6));
    union address mapped = mapped_loopback(port_of(four));
    R("to a mapped address", sendto(only, "x", 1, 0, &mapped.sa, sizeof mapped.in6));
    R("to an IPv4 address", sendto(only, "x", 1, 0, &plain.sa, sizeof plain.in));
    R("connect to an IPv4 address", connect(only, &plain.sa, sizeof plain.in));
    union address none = {.sa.sa_family = AF_UNSPEC};
    R("AF_UNSPEC as an address, unconnected", sendto(only, "x", 1, 0, &none.sa, sizeof none.in6));
    return 0;
}
