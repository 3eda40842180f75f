// shape: self
// A forking server: the parent closes each accepted fd, 20 children each serve one client.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family), port = port_of(listener);
        pid_t server = must_fork();
        if (server == 0) {
            for (int i = 0; i < 20; i++) {
                int fd = MUST(accept(listener, NULL, NULL));
                if (must_fork() == 0) {
                    close(listener);
                    char line[16];
                    ssize_t n = recv(fd, line, sizeof line, 0);
                    if (n > 0) MUST(send(fd, line, n, 0));
                    _exit(0);
                }
                close(fd);
            }
            while (wait(NULL) > 0) {}
            _exit(0);
        }
        close(listener);
        int fds[20];
        for (int i = 0; i < 20; i++) fds[i] = connect_to(family, port);
        for (int i = 19; i >= 0; i--) {
            char text[16];
            sprintf(text, "client %02d", i);
            send_text(fds[i], text);
            expect_text("echo", fds[i], 9);
            drain("echo", fds[i]);
            close(fds[i]);
        }
        reap("server", server);
    }
    return 0;
}
