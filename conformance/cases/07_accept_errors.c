// shape: self
// accept where it cannot be, and listen's own rules: before bind, twice, on a closed fd.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int fd = tcp_socket(family);
        R("accept on a fresh socket", accept(fd, NULL, NULL));
        MUST(bind_to(fd, family, 0));
        R("accept on a bound one", accept(fd, NULL, NULL));
        R("accept on a bad fd", accept(999, NULL, NULL));
        R("accept on a pipe", accept(0, NULL, NULL));
        R("listen", listen(fd, 5));
        R("listen again", listen(fd, 50));
        R("listen with -1", listen(fd, -1));
        T("SO_ACCEPTCONN %d", get_int(fd, SOL_SOCKET, SO_ACCEPTCONN));
        char c;
        R("recv on a listener", recv(fd, &c, 1, MSG_DONTWAIT));
        R("send on a listener", send(fd, "x", 1, MSG_NOSIGNAL));
        R("bind of a listener", bind_to(fd, family, 0));
        T("idle listener: %s", mask(poll1(fd, ALL_EVENTS, 0)));
        close(fd);
        fd = tcp_socket(family);
        R("listen without bind", listen(fd, 5));
        T("a port was given: %d", port_of(fd) > 0);
        int client = tcp_socket(family);
        R("connect to it", connect_fd(client, family, port_of(fd)));
        RF("accept", accept(fd, NULL, NULL));
        close(client);
        close(fd);
        R("listen on a closed fd", listen(fd, 5));
    }
    return 0;
}
