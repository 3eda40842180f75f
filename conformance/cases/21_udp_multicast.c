// shape: self
// A group on loopback: both members hear it, and nobody after leaving.
#include "udp.h"

int main(void) {
    case_start();
    int a = udp_socket(AF_INET), b = udp_socket(AF_INET), sender = udp_socket(AF_INET);
    struct in_addr lo = {htonl(INADDR_LOOPBACK)};
    struct ip_mreq group = {{htonl(0xefff0304)}, lo};
    union address to = any_address(AF_INET, 0);
    MUST(set_int(a, SOL_SOCKET, SO_REUSEADDR, 1));
    MUST(set_int(b, SOL_SOCKET, SO_REUSEADDR, 1));
    to.in.sin_addr = group.imr_multiaddr;
    MUST(bind(a, &to.sa, sizeof to.in));
    to.in.sin_port = htons(port_of(a));
    R("the same group and port", bind(b, &to.sa, sizeof to.in));
    R("join", setsockopt(a, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    R("join", setsockopt(b, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    R("interface", setsockopt(sender, IPPROTO_IP, IP_MULTICAST_IF, &lo, sizeof lo));
    R("send", sendto(sender, "to all", 6, 0, &to.sa, sizeof to.in));
    udp_expect("a", a);
    udp_expect("b", b);
    R("leave", setsockopt(b, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group));
    MUST(set_int(b, IPPROTO_IP, IP_MULTICAST_ALL, 0));
    R("send", sendto(sender, "to one", 6, 0, &to.sa, sizeof to.in));
    udp_expect("a", a);
    T("b %s", mask(poll1(b, POLLIN, QUIET_MS)));
    return 0;
}
