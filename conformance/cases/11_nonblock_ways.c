// shape: self
// O_NONBLOCK by SOCK_NONBLOCK, F_SETFL, FIONBIO and accept4; FD_CLOEXEC by SOCK_CLOEXEC, F_SETFD and FIOCLEX.
#include "case.h"

static void show(const char *what, int fd) {
    T("%s: nonblock %d cloexec %d access %d", what, !!(fcntl(fd, F_GETFL) & O_NONBLOCK), fcntl(fd, F_GETFD),
      fcntl(fd, F_GETFL) & O_ACCMODE);
}

int main(void) {
    case_start();
    int ends[2], yes = 1, no = 0;
    char c;
    show("socket", tcp_socket(AF_INET));
    show("SOCK_NONBLOCK", socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    show("SOCK_CLOEXEC", socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
    tcp_pair(AF_INET, ends);
    int copy = dup(ends[1]);
    R("FIONBIO", ioctl(ends[1], FIONBIO, &yes));
    show("FIONBIO", copy);
    R("recv", recv(copy, &c, 1, 0));
    R("FIONBIO off", ioctl(copy, FIONBIO, &no));
    show("off", ends[1]);
    R("FIOCLEX", ioctl(ends[1], FIOCLEX));
    show("FIOCLEX", ends[1]);
    show("its duplicate", copy);
    R("FIONCLEX", ioctl(ends[1], FIONCLEX));
    show("FIONCLEX", ends[1]);
    R("F_SETFL O_APPEND", fcntl(ends[1], F_SETFL, O_APPEND | O_NONBLOCK));
    show("F_SETFL", copy);
    T("O_APPEND %d", !!(fcntl(copy, F_GETFL) & O_APPEND));
    R("F_GETFL of a bad fd", fcntl(999, F_GETFL));
    struct stat s;
    R("fstat", fstat(ends[1], &s));
    T("a socket: %d", S_ISSOCK(s.st_mode));
    R("lseek", lseek(ends[1], 0, SEEK_SET));
    R("isatty", isatty(ends[1]));
    R("ftruncate", ftruncate(ends[1], 0));
    R("pread", pread(ends[1], &c, 1, 0));
    R("pwrite", pwrite(ends[1], "x", 1, 0));
    R("fsync", fsync(ends[1]));
    R("tcgetpgrp", tcgetpgrp(ends[1]));
    return 0;
}
