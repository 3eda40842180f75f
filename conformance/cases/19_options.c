// shape: self
// The options that servers and clients set as a matter of course: defaults, set, read back, inherited by accept.
#include "case.h"

static const struct {
    const char *name;
    int level, option, value;
} OPTIONS[] = {
    {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
    {"SO_BROADCAST", SOL_SOCKET, SO_BROADCAST, 1},
    {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1},
    {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
    {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 1},
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
    {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 33},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 11},
    {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 4},
    {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
    {"TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, 1},
    {"TCP_QUICKACK", IPPROTO_TCP, TCP_QUICKACK, 1},
    {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10},
};

int main(void) {
    case_start();
    int fd = tcp_socket(AF_INET);
    for (unsigned i = 0; i < sizeof OPTIONS / sizeof OPTIONS[0]; i++) {
        int level = OPTIONS[i].level, option = OPTIONS[i].option;
        T("%s: default %d", OPTIONS[i].name, get_int(fd, level, option));
        R("set", set_int(fd, level, option, OPTIONS[i].value));
        T("reads back %d", get_int(fd, level, option));
    }
    MUST(set_int(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 0));
    MUST(bind_to(fd, AF_INET, 0));
    MUST(listen(fd, 8));
    int client = connect_to(AF_INET, port_of(fd)), taken = MUST(accept(fd, NULL, NULL));
    T("inherited: NODELAY %d KEEPALIVE %d KEEPIDLE %d USER_TIMEOUT %d REUSEADDR %d",
      get_int(taken, IPPROTO_TCP, TCP_NODELAY), get_int(taken, SOL_SOCKET, SO_KEEPALIVE),
      get_int(taken, IPPROTO_TCP, TCP_KEEPIDLE), get_int(taken, IPPROTO_TCP, TCP_USER_TIMEOUT),
      get_int(taken, SOL_SOCKET, SO_REUSEADDR));
    T("the client's own: NODELAY %d", get_int(client, IPPROTO_TCP, TCP_NODELAY));
    T("buffers, there and bounded: %d", get_int(client, SOL_SOCKET, SO_SNDBUF) > 4096 && get_int(client, SOL_SOCKET, SO_RCVBUF) > 4096);
    R("SO_SNDBUF", set_int(client, SOL_SOCKET, SO_SNDBUF, 50000));
    T("doubled: %d", get_int(client, SOL_SOCKET, SO_SNDBUF));
    return 0;
}
