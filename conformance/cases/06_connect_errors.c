// shape: self
// What connect refuses: wrong family, short address, bad fd, listening and connected sockets; AF_UNSPEC disconnects.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), port = port_of(listener), fd = tcp_socket(AF_INET);
    union address v6 = loopback(AF_INET6, port), v4 = loopback(AF_INET, port), local = {.sa.sa_family = AF_UNIX};
    R("inet to inet6", connect(fd, &v6.sa, sizeof v6.in6));
    R("inet to unix", connect(fd, &local.sa, sizeof local.in));
    R("short", connect(fd, &v4.sa, 8));
    R("no length", connect(fd, &v4.sa, 0));
    R("a bad fd", connect(999, &v4.sa, sizeof v4.in));
    R("a pipe's fd", connect(0, &v4.sa, sizeof v4.in));
    R("a listener", connect(listener, &v4.sa, sizeof v4.in));
    int six = tcp_socket(AF_INET6);
    R("inet6, short", connect(six, &v6.sa, sizeof v6.in));
    R("inet6 to inet", connect(six, &v4.sa, sizeof v4.in));
    R("connect", connect(fd, &v4.sa, sizeof v4.in));
    R("connect twice", connect(fd, &v4.sa, sizeof v4.in));
    R("listen on a connection", listen(fd, 5));
    R("bind of a connection", bind_to(fd, AF_INET, 0));
    R("accept on a connection", accept(fd, NULL, NULL));
    int taken = MUST(accept(listener, NULL, NULL));
    send_text(fd, "x");
    expect_text("server", taken, 1);
    return 0;
}
