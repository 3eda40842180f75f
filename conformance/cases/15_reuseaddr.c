// shape: self
// A server restarts on its port: at once with SO_REUSEADDR, also while old connections linger; EADDRINUSE while it listens.
#include "case.h"

static int listen_on(int family, int port, int reuse) {
    int fd = tcp_socket(family);
    if (reuse) MUST(set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1));
    if (R("bind", bind_to(fd, family, port)) < 0 || R("listen", listen(fd, 8)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int port = private_port() + (family == AF_INET6);
        int listener = listen_on(family, port, 1);
        int client = connect_to(family, port), taken = MUST(accept(listener, NULL, NULL));
        T("while it listens");
        listen_on(family, port, 0);
        listen_on(family, port, 1);
        close(listener);
        T("closed, a connection open, without SO_REUSEADDR");
        listen_on(family, port, 0);
        T("with it");
        listener = listen_on(family, port, 1);
        send_text(client, "old");
        expect_text("old connection", taken, 3);
        close(taken); // the server's side closes first: TIME_WAIT is on its port
        drain("client", client);
        close(client);
        close(listener);
        T("TIME_WAIT");
        listener = listen_on(family, port, 1);
        client = connect_to(family, port);
        T("serves again: %d", accept(listener, NULL, NULL) >= 0);
        close(client);
        close(listener);
    }
    return 0;
}
