// shape: self
// Options of datagram sockets: multicast, broadcast, buffers, names that nobody knows.
#include "udp.h"

int main(void) {
    case_start();
    int fd = udp_bound(AF_INET), six = udp_bound(AF_INET6);
    R("BROADCAST", set_int(fd, SOL_SOCKET, SO_BROADCAST, 1));
    T("%d", get_int(fd, SOL_SOCKET, SO_BROADCAST));
    R("MULTICAST_TTL", set_int(fd, IPPROTO_IP, IP_MULTICAST_TTL, 4));
    T("%d", get_int(fd, IPPROTO_IP, IP_MULTICAST_TTL));
    R("MULTICAST_TTL, too large", set_int(fd, IPPROTO_IP, IP_MULTICAST_TTL, 400));
    R("MULTICAST_LOOP", set_int(fd, IPPROTO_IP, IP_MULTICAST_LOOP, 0));
    T("%d", get_int(fd, IPPROTO_IP, IP_MULTICAST_LOOP));
    R("MULTICAST_ALL", set_int(fd, IPPROTO_IP, IP_MULTICAST_ALL, 0));
    struct in_addr lo = {htonl(INADDR_LOOPBACK)};
    R("MULTICAST_IF", setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &lo, sizeof lo));
    struct ip_mreq group = {{htonl(0xefff0102)}, {htonl(INADDR_LOOPBACK)}}, bad = {lo, lo};
    R("join", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    R("join twice", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group));
    R("join what is no group", setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &bad, sizeof bad));
    R("leave", setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group));
    R("leave twice", setsockopt(fd, IPPROTO_IP, IP_DROP_MEMBERSHIP, &group, sizeof group));
    R("MULTICAST_HOPS", set_int(six, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 3));
    T("%d", get_int(six, IPPROTO_IPV6, IPV6_MULTICAST_HOPS));
    R("MULTICAST_LOOP", set_int(six, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0));
    struct ipv6_mreq group6 = {.ipv6mr_interface = 1};
    inet_pton(AF_INET6, "ff01::1:2", &group6.ipv6mr_multiaddr);
    R("join", setsockopt(six, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &group6, sizeof group6));
    R("leave", setsockopt(six, IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, &group6, sizeof group6));
    R("leave twice", setsockopt(six, IPPROTO_IPV6, IPV6_DROP_MEMBERSHIP, &group6, sizeof group6));
    R("MTU_DISCOVER", set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO));
    T("%d", get_int(fd, IPPROTO_IP, IP_MTU_DISCOVER));
    R("RCVBUF", set_int(fd, SOL_SOCKET, SO_RCVBUF, 50000));
    T("%d", get_int(fd, SOL_SOCKET, SO_RCVBUF));
    T("accepting %d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
    R("unknown", set_int(fd, IPPROTO_UDP, 77, 1));
    return 0;
}
