// shape: self
// What interfaces there are: getifaddrs, if_nametoindex and its relatives, and the ioctls of netdevice(7), as they are where the sockets
// are opened. Only the loopback interface is printed, since every namespace has one.
#include "case.h"
#include <ifaddrs.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netpacket/packet.h>

static const char *text(const struct sockaddr *a, char *to, socklen_t len) {
    if (!a) return "null";
    if (a->sa_family == AF_INET) return inet_ntop(AF_INET, &((struct sockaddr_in *)a)->sin_addr, to, len);
    if (a->sa_family == AF_INET6) return inet_ntop(AF_INET6, &((struct sockaddr_in6 *)a)->sin6_addr, to, len);
    if (a->sa_family == AF_PACKET) {
        const struct sockaddr_ll *l = (const struct sockaddr_ll *)a;
        snprintf(to, len, "link %d type %d length %d", l->sll_ifindex, l->sll_hatype, l->sll_halen);
        return to;
    }
    return "another family";
}

static void list(void) {
    struct ifaddrs *all, *i;
    R("getifaddrs", getifaddrs(&all));
    for (i = all; i; i = i->ifa_next) {
        char a[64], m[64];
        if (strcmp(i->ifa_name, "lo")) continue;
        T("lo: flags %x address %s mask %s", i->ifa_flags & (IFF_UP | IFF_LOOPBACK | IFF_BROADCAST | IFF_MULTICAST),
          text(i->ifa_addr, a, sizeof a), text(i->ifa_netmask, m, sizeof m));
        // A link's data are its counters; what loopback sent it received.
        const struct rtnl_link_stats *s = i->ifa_data;
        T("  data: %s", !s ? "none" : s->rx_packets && s->rx_bytes == s->tx_bytes ? "counters" : "other");
    }
    freeifaddrs(all);
}

static void names(void) {
    char name[IF_NAMESIZE];
    unsigned index = if_nametoindex("lo");
    T("lo has index %u", index);
    T("index %u is %s", index, if_indextoname(index, name) ? name : "null");
    errno = 0;
    T("no such name: %u", if_nametoindex("nk-none"));
    T("%s", ename(errno));
    T("a name too long: %u", if_nametoindex("a-name-of-sixteen-and-more"));
    T("%s", ename(errno));
    T("no such index: %s", if_indextoname(1 << 30, name) ? name : "null");
    T("%s", ename(errno));
    struct if_nameindex *all = if_nameindex(), *i;
    for (i = all; i && i->if_index; i++)
        if (!strcmp(i->if_name, "lo")) T("in the list: %u %s", i->if_index, i->if_name);
    if_freenameindex(all);
}

static void requests(const char *what, int domain, int type) {
    static const struct { unsigned long request; const char *name; } all[] = {
        {SIOCGIFFLAGS, "SIOCGIFFLAGS"}, {SIOCGIFADDR, "SIOCGIFADDR"}, {SIOCGIFNETMASK, "SIOCGIFNETMASK"},
        {SIOCGIFMTU, "SIOCGIFMTU"}, {SIOCGIFHWADDR, "SIOCGIFHWADDR"}, {SIOCGIFINDEX, "SIOCGIFINDEX"},
        {SIOCGIFMETRIC, "SIOCGIFMETRIC"}, {SIOCGIFTXQLEN, "SIOCGIFTXQLEN"},
    };
    int s = MUST(socket(domain, type, 0));
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        struct ifreq r;
        memset(&r, 0, sizeof r);
        strcpy(r.ifr_name, "lo");
        char line[100], a[64];
        snprintf(line, sizeof line, "%s %s", what, all[k].name);
        if (R(line, ioctl(s, all[k].request, &r)) < 0) continue;
        if (all[k].request == SIOCGIFADDR || all[k].request == SIOCGIFNETMASK) T("  %s", text(&r.ifr_addr, a, sizeof a));
        else if (all[k].request == SIOCGIFHWADDR) T("  family %d", r.ifr_hwaddr.sa_family);
        else if (all[k].request == SIOCGIFFLAGS) T("  %x", r.ifr_flags & (IFF_UP | IFF_LOOPBACK));
        else T("  %d", r.ifr_ifindex);
    }
    struct ifreq none;
    memset(&none, 0, sizeof none);
    strcpy(none.ifr_name, "nk-none");
    R("no such interface", ioctl(s, SIOCGIFFLAGS, &none));
    R("nowhere", ioctl(s, SIOCGIFADDR, NULL));
    struct ifreq many[64];
    struct ifconf c = {.ifc_len = sizeof many, .ifc_req = many};
    R("SIOCGIFCONF", ioctl(s, SIOCGIFCONF, &c));
    for (int k = 0; k < c.ifc_len / (int)sizeof *many; k++) {
        char a[64];
        if (!strcmp(many[k].ifr_name, "lo")) T("  lo %s", text(&many[k].ifr_addr, a, sizeof a));
    }
    int whole = c.ifc_len;
    c.ifc_req = NULL;
    R("SIOCGIFCONF without room", ioctl(s, SIOCGIFCONF, &c));
    T("the length that it needs: %s", c.ifc_len == whole ? "the same" : "another");
    c.ifc_req = many;
    c.ifc_len = sizeof *many - 1;
    R("SIOCGIFCONF with less than one", ioctl(s, SIOCGIFCONF, &c));
    T("  %d", c.ifc_len);
    close(s);
}

int main(void) {
    case_start();
    list();
    names();
    requests("stream", AF_INET, SOCK_STREAM);
    requests("datagram", AF_INET, SOCK_DGRAM);
    requests("stream over IPv6", AF_INET6, SOCK_STREAM);
    return 0;
}
