// shape: self
// A refused connection, blocking and not: errno, masks, SO_ERROR cleared by reading, the socket can go on.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int refused = refused_port(family), listener = make_listener(family);
        int fd = tcp_socket(family);
        R("connect", connect_fd(fd, family, refused));
        T("SO_ERROR %s", so_error(fd));
        T("mask %s", mask(poll1(fd, ALL_EVENTS, 0)));
        R("connect elsewhere", connect_fd(fd, family, port_of(listener)));
        send_text(fd, "x");
        close(fd);

        fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
        R("connect", connect_fd(fd, family, refused));
        T("mask %s", mask(wait_mask(fd, ALL_EVENTS, POLLERR)));
        T("SO_ERROR %s", so_error(fd));
        T("SO_ERROR again %s", so_error(fd));
        T("mask %s", mask(poll1(fd, ALL_EVENTS, 0)));
        char c;
        R("send", send(fd, "x", 1, MSG_NOSIGNAL));
        R("recv", recv(fd, &c, 1, 0));
        close(fd);

        fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
        R("connect", connect_fd(fd, family, refused));
        wait_mask(fd, ALL_EVENTS, POLLERR);
        R("connect reports it", connect_fd(fd, family, refused));
        T("SO_ERROR %s", so_error(fd));
        close(fd);

        fd = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
        R("connect", connect_fd(fd, family, refused));
        wait_mask(fd, ALL_EVENTS, POLLERR);
        R("recv reports it", recv(fd, &c, 1, 0));
        T("SO_ERROR %s", so_error(fd));
        close(fd);
    }
    return 0;
}
