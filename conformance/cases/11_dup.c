// shape: self
// dup, dup2, dup3, F_DUPFD, F_DUPFD_CLOEXEC: one socket, shared flags, closed with the last descriptor.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    char c;
    tcp_pair(AF_INET, ends);
    int copies[5];
    copies[0] = MUST(dup(ends[1]));
    copies[1] = MUST(dup2(ends[1], 100));
    copies[2] = MUST(dup3(ends[1], 101, O_CLOEXEC));
    copies[3] = MUST(fcntl(ends[1], F_DUPFD, 50));
    copies[4] = MUST(fcntl(ends[1], F_DUPFD_CLOEXEC, 50));
    T("numbers: %d %d %d %d", copies[1], copies[2], copies[3], copies[4]);
    for (int i = 0; i < 5; i++) T("cloexec %d", fcntl(copies[i], F_GETFD) & FD_CLOEXEC);
    send_text(ends[0], "abcde");
    for (int i = 0; i < 5; i++) {
        R("recv", recv(copies[i], &c, 1, 0));
        T("byte %c", c);
        send_text(copies[i], "r");
    }
    expect_text("answers", ends[0], 5);
    nonblock(copies[0]);
    R("recv after O_NONBLOCK on another", recv(ends[1], &c, 1, 0));
    blocking(copies[3]);
    T("nonblock now %d", !!(fcntl(ends[1], F_GETFL) & O_NONBLOCK));
    R("dup2 onto itself", dup2(ends[1], ends[1]) == ends[1] ? 0 : -1);
    R("dup3 onto itself", dup3(ends[1], ends[1], 0));
    R("dup2 of a bad fd", dup2(999, 60));
    R("dup of a bad fd", dup(999));
    close(ends[1]);
    for (int i = 0; i < 5; i++) {
        T("before close %d: %s", i, mask(poll1(ends[0], POLLIN | POLLRDHUP, 20)));
        R("close", close(copies[i]));
    }
    drain("after the last close", ends[0]);
    R("close again", close(copies[1]));
    return 0;
}
