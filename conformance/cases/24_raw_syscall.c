// shape: self
// Sockets made past libc: a guest is refused, loudly; natively they are there. Unix sockets are let through.
// expect-guest: raw inet refused
// expect-guest: raw inet6 refused
// expect-guest: raw unix works
// expect-guest: raw io_uring_setup refused
// expect-guest: libc's socket works
#include "case.h"

int main(void) {
    case_start();
    T("raw inet %s", syscall(SYS_socket, AF_INET, SOCK_STREAM, 0) < 0 ? "refused" : "works");
    T("raw inet6 %s", syscall(SYS_socket, AF_INET6, SOCK_STREAM, 0) < 0 ? "refused" : "works");
    T("raw unix %s", syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0) < 0 ? "refused" : "works");
    char parameters[256] = {0};
    T("raw io_uring_setup %s", syscall(SYS_io_uring_setup, 4, parameters) < 0 ? "refused" : "works");
    T("libc's socket %s", socket(AF_INET, SOCK_STREAM, 0) < 0 ? "refused" : "works");
    return 0;
}
