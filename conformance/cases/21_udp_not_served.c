// shape: self
// What a guest must refuse of datagram sockets: segmentation offload, the error queue, corking. Each with the errno of a kernel that has it not.
// expect-guest: GSO = -1 ENOPROTOOPT
// expect-guest: GRO = -1 ENOPROTOOPT
// expect-guest: CORK = -1 ENOPROTOOPT
// expect-guest: RECVERR = -1 ENOPROTOOPT
// expect-guest: RECVERR, IPv6 = -1 ENOPROTOOPT
// expect-guest: GSO of one = -1 EINVAL
// expect-guest: MSG_MORE = -1 EOPNOTSUPP
// expect-guest: sendfile = -1 EINVAL
#include "udp.h"

int main(void) {
    case_start();
    int ends[2], six = udp_socket(AF_INET6);
    udp_pair(AF_INET, ends);
    R("GSO", set_int(ends[0], IPPROTO_UDP, 103, 1000));
    R("GRO", set_int(ends[0], IPPROTO_UDP, 104, 1));
    R("CORK", set_int(ends[0], IPPROTO_UDP, 1, 1));
    R("RECVERR", set_int(ends[0], IPPROTO_IP, IP_RECVERR, 1));
    R("RECVERR, IPv6", set_int(six, IPPROTO_IPV6, IPV6_RECVERR, 1));
    _Alignas(8) char control[64] = {0};
    struct iovec v = {"abcd", 4};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(2)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){CMSG_LEN(2), IPPROTO_UDP, 103};
    memcpy(CMSG_DATA(c), &(uint16_t){2}, 2);
    R("GSO of one", sendmsg(ends[0], &m, 0));
    R("MSG_MORE", send(ends[0], "x", 1, MSG_MORE));
    int file = MUST(open("/proc/self/exe", O_RDONLY));
    R("sendfile", sendfile(ends[0], file, NULL, 100));
    return 0;
}
