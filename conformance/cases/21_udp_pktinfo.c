// shape: self
// Control messages: where a datagram was sent to, its TOS and TTL, the drop count's option; and the same for one that is sent.
#include "udp.h"

static void show(struct msghdr *m) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *p = (void *)CMSG_DATA(c);
            T("  PKTINFO %s interface: %d, local %s", inet_ntoa(p->ipi_addr), p->ipi_ifindex != 0,
              p->ipi_spec_dst.s_addr == htonl(INADDR_LOOPBACK) ? "loopback" : "other");
        } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo *p = (void *)CMSG_DATA(c);
            T("  PKTINFO6 loopback: %d interface: %d", IN6_IS_ADDR_LOOPBACK(&p->ipi6_addr), p->ipi6_ifindex != 0);
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
            T("  TOS %d, length %zu", *(unsigned char *)CMSG_DATA(c), (size_t)c->cmsg_len);
        } else {
            T("  level %d type %d: %d, length %zu", c->cmsg_level, c->cmsg_type, *(int *)CMSG_DATA(c),
              (size_t)c->cmsg_len);
        }
    }
}

static void get(const char *what, int fd, size_t room) {
    char bytes[64];
    _Alignas(8) char control[256];
    struct iovec v = {bytes, sizeof bytes};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = room};
    MUST(wait_mask(fd, POLLIN, POLLIN));
    R(what, recvmsg(fd, &m, 0));
    T("  control %zu, flags %s", (size_t)m.msg_controllen, m.msg_flags == MSG_CTRUNC ? "CTRUNC" : m.msg_flags ? "?" : "0");
    if (room > 40) show(&m);
}

static long put(int fd, union address *to, socklen_t length, int level, int type, const void *value, size_t size) {
    _Alignas(8) char control[64] = {0};
    struct iovec v = {"cmsg", 4};
    struct msghdr m = {to, length, &v, 1, control, CMSG_SPACE(size), 0};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){CMSG_LEN(size), level, type};
    memcpy(CMSG_DATA(c), value, size);
    return sendmsg(fd, &m, 0);
}

int main(void) {
    case_start();
    int server = udp_bound(AF_INET), client = udp_bound(AF_INET), on = 1;
    union address to = loopback(AF_INET, port_of(server));
    R("PKTINFO", set_int(server, IPPROTO_IP, IP_PKTINFO, on));
    R("RECVTOS", set_int(server, IPPROTO_IP, IP_RECVTOS, on));
    R("RECVTTL", set_int(server, IPPROTO_IP, IP_RECVTTL, on));
    T("%d %d %d", get_int(server, IPPROTO_IP, IP_PKTINFO), get_int(server, IPPROTO_IP, IP_RECVTOS),
      get_int(server, IPPROTO_IP, IP_RECVTTL));
    R("RXQ_OVFL", set_int(server, SOL_SOCKET, SO_RXQ_OVFL, on));
    T("%d", get_int(server, SOL_SOCKET, SO_RXQ_OVFL));
    R("IP_TOS", set_int(client, IPPROTO_IP, IP_TOS, 0x28));
    R("IP_TTL", set_int(client, IPPROTO_IP, IP_TTL, 33));
    MUST(sendto(client, "one", 3, 0, &to.sa, sizeof to.in));
    get("all", server, 256);
    MUST(sendto(client, "two", 3, 0, &to.sa, sizeof to.in));
    get("no room", server, 30);
    MUST(sendto(client, "three", 5, 0, &to.sa, sizeof to.in));
    get("none asked for", server, 0);
    R("one TTL", put(client, &to, sizeof to.in, IPPROTO_IP, IP_TTL, &(int){7}, 4));
    get("it", server, 256);
    R("one TOS", put(client, &to, sizeof to.in, IPPROTO_IP, IP_TOS, &(int){0x10}, 4));
    get("it", server, 256);
    struct in_pktinfo from = {.ipi_spec_dst.s_addr = htonl(INADDR_LOOPBACK)};
    R("from an address", put(client, &to, sizeof to.in, IPPROTO_IP, IP_PKTINFO, &from, sizeof from));
    get("it", server, 256);
    R("a bad TTL", put(client, &to, sizeof to.in, IPPROTO_IP, IP_TTL, &(int){300}, 4));
    R("an unknown type", put(client, &to, sizeof to.in, IPPROTO_IP, 99, &(int){1}, 4));
    R("another level", put(client, &to, sizeof to.in, IPPROTO_TCP, 1, &(int){1}, 4));
    get("it", server, 256);
    from.ipi_spec_dst.s_addr = htonl(0x08080808);
    R("from an address that is not ours", put(client, &to, sizeof to.in, IPPROTO_IP, IP_PKTINFO, &from, sizeof from));

    server = udp_bound(AF_INET6), client = udp_bound(AF_INET6);
    to = loopback(AF_INET6, port_of(server));
    R("RECVPKTINFO", set_int(server, IPPROTO_IPV6, IPV6_RECVPKTINFO, on));
    R("RECVTCLASS", set_int(server, IPPROTO_IPV6, IPV6_RECVTCLASS, on));
    R("RECVHOPLIMIT", set_int(server, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, on));
    R("TCLASS", set_int(client, IPPROTO_IPV6, IPV6_TCLASS, 0x20));
    R("HOPS", set_int(client, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 44));
    MUST(sendto(client, "six", 3, 0, &to.sa, sizeof to.in6));
    get("all", server, 256);
    struct in6_pktinfo from6 = {.ipi6_addr = in6addr_loopback};
    R("from an address", put(client, &to, sizeof to.in6, IPPROTO_IPV6, IPV6_PKTINFO, &from6, sizeof from6));
    get("it", server, 256);
    R("one hop limit", put(client, &to, sizeof to.in6, IPPROTO_IPV6, IPV6_HOPLIMIT, &(int){9}, 4));
    get("it", server, 256);
    return 0;
}
