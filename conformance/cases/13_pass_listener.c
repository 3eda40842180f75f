// shape: self
// A listener is handed over (as haproxy reloads and node's cluster do); both can accept, then the new one alone.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int channel[2], listener, port;
        MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel));
        pid_t child = must_fork();
        if (child == 0) {
            close(channel[0]);
            listener = scm_receive(channel[1]);
            T("SO_ACCEPTCONN %d", get_int(listener, SOL_SOCKET, SO_ACCEPTCONN));
            MUST(write(channel[1], "r", 1));
            for (int i = 0; i < 3; i++) {
                int fd = MUST(accept(listener, NULL, NULL));
                send_text(fd, "new owner");
                close(fd);
            }
            _exit(0);
        }
        close(channel[1]);
        listener = private_listener(family, family == AF_INET6); // made after the fork: only the message brings it over
        port = port_of(listener);
        int fd = connect_to(family, port);
        scm_send(channel[0], listener);
        char c;
        MUST(read(channel[0], &c, 1));
        close(listener);
        expect_text("client", fd, 9);
        close(fd);
        for (int i = 0; i < 2; i++) {
            fd = connect_to(family, port);
            expect_text("client", fd, 9);
            drain("client", fd);
            close(fd);
        }
        reap("child", child);
        R("connect after its end", refused_soon(family, port));
        close(channel[0]);
    }
    return 0;
}
