// shape: self
// A listener and a connection cross exec by number; those with FD_CLOEXEC do not.
#include "case.h"

int main(int argc, char **argv) {
    case_start();
    if (argc == 6) { // the new image
        int listener = atoi(argv[1]), connection = atoi(argv[2]);
        T("cloexec ones: %s %s", fcntl(atoi(argv[3]), F_GETFD) < 0 ? ename(errno) : "open",
          fcntl(atoi(argv[4]), F_GETFD) < 0 ? ename(errno) : "open");
        T("SO_ACCEPTCONN %d %d", get_int(listener, SOL_SOCKET, SO_ACCEPTCONN),
          get_int(connection, SOL_SOCKET, SO_ACCEPTCONN));
        expect_text("sent before exec", connection, 6);
        send_text(connection, "after");
        int taken = RF("accept", accept(listener, NULL, NULL));
        expect_text("new connection", taken, 5);
        T("port kept: %d", port_of(listener) == atoi(argv[5]));
        send_text(taken, "done!");
        return 7;
    }
    EACH_FAMILY(family) {
        int listener = make_listener(family), ends[2], gone = private_listener(family, family == AF_INET6), gone_ends[2];
        tcp_pair(family, ends);
        tcp_pair(family, gone_ends);
        MUST(fcntl(gone, F_SETFD, FD_CLOEXEC));
        MUST(fcntl(gone_ends[1], F_SETFD, FD_CLOEXEC));
        send_text(ends[0], "before");
        pid_t child = must_fork();
        if (child == 0) {
            close(ends[0]);
            close(gone_ends[0]);
            char text[5][16];
            sprintf(text[0], "%d", listener);
            sprintf(text[1], "%d", ends[1]);
            sprintf(text[2], "%d", gone);
            sprintf(text[3], "%d", gone_ends[1]);
            sprintf(text[4], "%d", port_of(listener));
            execl("/proc/self/exe", "case", text[0], text[1], text[2], text[3], text[4], NULL);
            MUST(-1);
        }
        int port = port_of(listener), gone_port = port_of(gone);
        close(listener);
        close(ends[1]);
        close(gone);
        close(gone_ends[1]);
        expect_text("from the new image", ends[0], 5);
        int fd = tcp_socket(family);
        R("connect to the listener with FD_CLOEXEC", connect_fd(fd, family, gone_port));
        close(fd);
        drain("the connection with FD_CLOEXEC", gone_ends[0]);
        fd = connect_to(family, port);
        send_text(fd, "hello");
        expect_text("from the new image", fd, 5);
        reap("new image", child);
        drain("new connection", fd);
        drain("old connection", ends[0]);
        close(fd);
        close(ends[0]);
        close(gone_ends[0]);
    }
    return 0;
}
