// shape: self
// A non-blocking accept gives EAGAIN; accepted sockets inherit neither O_NONBLOCK nor FD_CLOEXEC.
#include "case.h"

static void flags(const char *what, int fd) {
    T("%s: nonblock %d, cloexec %d", what, !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
        MUST(bind_to(listener, family, 0));
        MUST(listen(listener, 8));
        flags("listener", listener);
        R("accept", accept(listener, NULL, NULL));
        R("accept4", accept4(listener, NULL, NULL, SOCK_NONBLOCK));
        for (int i = 0; i < 5; i++) {
            int client = connect_to(family, port_of(listener));
            wait_mask(listener, POLLIN, POLLIN);
            int how[] = {0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC};
            int fd = i == 4 ? accept(listener, NULL, NULL) : accept4(listener, NULL, NULL, how[i]);
            flags("accepted", MUST(fd));
            close(fd);
            close(client);
        }
        R("accept", accept(listener, NULL, NULL));
        R("accept4 with a wrong flag", accept4(listener, NULL, NULL, 1));
        close(listener);
    }
    return 0;
}
