// shape: self
// What a socket says that it is: SO_TYPE, DOMAIN, PROTOCOL, ACCEPTCONN, ERROR; lengths; wrong options and levels.
#include "case.h"

static void facts(const char *what, int fd) {
    T("%s: stream %d, %s, protocol %d, listens %d, error %s", what, get_int(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM,
      family_name(get_int(fd, SOL_SOCKET, SO_DOMAIN)), get_int(fd, SOL_SOCKET, SO_PROTOCOL),
      get_int(fd, SOL_SOCKET, SO_ACCEPTCONN), so_error(fd));
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2], listener = make_listener(family), value = 77;
        tcp_pair(family, ends);
        facts("fresh", tcp_socket(family));
        facts("with a protocol", socket(family, SOCK_STREAM, IPPROTO_TCP));
        facts("listener", listener);
        facts("client", ends[0]);
        facts("accepted", ends[1]);
        socklen_t length = 2;
        R("a short buffer", getsockopt(ends[0], SOL_SOCKET, SO_TYPE, &value, &length));
        T("length %u", length);
        length = 0;
        R("no buffer", getsockopt(ends[0], SOL_SOCKET, SO_TYPE, &value, &length));
        T("length %u", length);
        length = 100;
        char big[100];
        R("a long one", getsockopt(ends[0], SOL_SOCKET, SO_TYPE, big, &length));
        T("length %u", length);
        length = sizeof big;
        R("bound to no device", getsockopt(ends[0], SOL_SOCKET, SO_BINDTODEVICE, big, &length));
        T("length %u", length);
        R("set SO_TYPE", set_int(ends[0], SOL_SOCKET, SO_TYPE, 1));
        R("set SO_ERROR", set_int(ends[0], SOL_SOCKET, SO_ERROR, 1));
        R("set SO_ACCEPTCONN", set_int(ends[0], SOL_SOCKET, SO_ACCEPTCONN, 1));
        R("an unknown option", set_int(ends[0], SOL_SOCKET, 9999, 1));
        R("an unknown one of TCP", set_int(ends[0], IPPROTO_TCP, 9999, 1));
        R("an unknown level", set_int(ends[0], 9999, 1, 1));
        length = sizeof value;
        R("get an unknown option", getsockopt(ends[0], SOL_SOCKET, 9999, &value, &length));
        R("get an unknown one of TCP", getsockopt(ends[0], IPPROTO_TCP, 9999, &value, &length));
        R("too short", setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &value, 1));
        R("a bad fd", set_int(999, SOL_SOCKET, SO_KEEPALIVE, 1));
        R("a pipe", set_int(0, SOL_SOCKET, SO_KEEPALIVE, 1));
        R("a wrong value", set_int(ends[0], IPPROTO_TCP, TCP_KEEPIDLE, 0));
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
