// shape: self
// bind to port 0 and to a taken port; getsockname and getpeername agree with each other.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int fd = tcp_socket(family);
        T("port before bind: %d", port_of(fd));
        R("bind 0", bind_to(fd, family, 0));
        int port = port_of(fd);
        T("a port was given: %d", port > 0);
        R("bind again", bind_to(fd, family, 0));
        int other = tcp_socket(family);
        R("bind to a taken port", bind_to(other, family, port));
        MUST(listen(fd, 8));
        T("listening on the same port: %d", port_of(fd) == port);
        R("bind to a listening port", bind_to(other, family, port));
        MUST(set_int(other, SOL_SOCKET, SO_REUSEADDR, 1));
        R("with SO_REUSEADDR", bind_to(other, family, port));
        int client = connect_to(family, port), taken = MUST(accept(fd, NULL, NULL));
        T("names agree: %d %d", port_of(client) == peer_port_of(taken), peer_port_of(client) == port_of(taken));
        T("accepted socket's port is the listener's: %d", port_of(taken) == port);
        union address a;
        socklen_t length = sizeof a;
        R("getpeername of a listener", getpeername(fd, &a.sa, &length));
        R("getpeername of a fresh socket", getpeername(tcp_socket(family), &a.sa, &length));
        length = 0;
        R("getsockname into nothing", getsockname(client, &a.sa, &length));
        T("length is %d", (int)length == (int)address_length(family));
        length = 4;
        memset(&a, 0xee, sizeof a);
        R("getsockname into 4 bytes", getsockname(client, &a.sa, &length));
        T("family %s, length is %d, fifth byte %02x", family_name(a.sa.sa_family),
          (int)length == (int)address_length(family), ((unsigned char *)&a)[4]);
        close(client);
        close(taken);
        close(fd);
        close(other);
    }
    return 0;
}
