// shape: self
// dup2 and dup3 over a connected socket, a listener, a file and stdin: the old one is closed, the new one works.
#include "case.h"

int main(void) {
    case_start();
    int a[2], b[2], listener = private_listener(AF_INET, 0), port = port_of(listener), file = MUST(open("/dev/null", O_RDWR));
    tcp_pair(AF_INET, a);
    tcp_pair(AF_INET6, b);
    R("over a connection", dup2(b[1], a[1]) == a[1] ? 0 : -1);
    drain("the old peer", a[0]);
    send_text(b[0], "x");
    expect_text("the new one", a[1], 1);
    R("over a listener", dup3(b[1], listener, O_CLOEXEC) == listener ? 0 : -1);
    T("cloexec %d", fcntl(listener, F_GETFD));
    int fd = tcp_socket(AF_INET);
    R("connect to the old listener", connect_fd(fd, AF_INET, port));
    R("over a file", dup2(b[1], file) == file ? 0 : -1);
    send_text(file, "y");
    expect_text("peer", b[0], 1);
    R("over stdin", dup2(b[1], 0));
    send_text(b[0], "z");
    char c = 0;
    R("read of stdin", read(0, &c, 1));
    T("byte %c", c);
    int null = open("/dev/null", O_RDONLY);
    R("a file over a socket", dup2(null, b[1]) == b[1] ? 0 : -1);
    R("recv on it", recv(b[1], &c, 1, 0));
    T("three copies are left: %s", mask(poll1(b[0], POLLIN | POLLRDHUP, 20)));
    close(a[1]);
    close(file);
    close(listener);
    close(0);
    drain("after the last", b[0]);
    return 0;
}
