// shape: self
// A port that nobody listens on: the ICMP error comes as ECONNREFUSED on a connected socket, once, and not at all on another.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int gone = udp_bound(family), port = port_of(gone);
        close(gone);
        int fd = udp_socket(family);
        MUST(udp_connect(fd, family, port));
        R("send", send(fd, "x", 1, 0));
        T("mask %s", mask(wait_mask(fd, POLLIN | POLLOUT, POLLERR)));
        R("recv", recv(fd, &(char){0}, 1, 0));
        R("then", recv(fd, &(char){0}, 1, MSG_DONTWAIT));
        R("send", send(fd, "x", 1, 0));
        wait_mask(fd, POLLIN, POLLERR);
        T("SO_ERROR %s, then %s", so_error(fd), so_error(fd));
        R("send", send(fd, "x", 1, 0));
        wait_mask(fd, POLLIN, POLLERR);
        R("the next send tells", send(fd, "x", 1, 0));
        close(fd);
        // A blocked receiver is woken by it.
        fd = udp_socket(family);
        MUST(udp_connect(fd, family, port));
        MUST(send(fd, "x", 1, 0));
        R("a blocked recv", recv(fd, &(char){0}, 1, 0));
        close(fd);
        fd = udp_socket(family);
        R("unconnected", udp_to(fd, family, port, "x", 1));
        T("mask %s", mask(poll1(fd, POLLIN, QUIET_MS)));
        R("again", udp_to(fd, family, port, "x", 1));
        close(fd);
    }
    return 0;
}
