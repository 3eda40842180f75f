// shape: self
// New descriptors get the lowest free number, as shells, daemons and inetd-likes rely on. (Prints numbers.)
#include "case.h"

int main(void) {
    case_start();
    close(0);
    T("socket %d", tcp_socket(AF_INET));
    T("socket %d", tcp_socket(AF_INET6));
    T("dup %d", dup(0));
    close(3);
    T("listener %d", make_listener(AF_INET));
    int client = connect_to(AF_INET, port_of(3));
    T("client %d", client);
    close(0);
    T("accepted %d", accept(3, NULL, NULL));
    T("epoll %d", epoll_create1(0));
    T("eventfd %d", eventfd(0, 0));
    T("open %d", open("/dev/null", O_RDONLY));
    T("F_DUPFD 100 %d", fcntl(3, F_DUPFD, 100));
    T("F_DUPFD 100 %d", fcntl(3, F_DUPFD_CLOEXEC, 100));
    int p[2];
    MUST(pipe(p));
    T("pipe %d %d", p[0], p[1]);
    return 0;
}
