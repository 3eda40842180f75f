// shape: self
// close_range over sockets, with CLOSE_RANGE_CLOEXEC too, and closefrom; the peers see EOF at once.
#include "case.h"

static void at(int fd, int number) {
    MUST(dup2(fd, number));
    close(fd);
}

int main(void) {
    case_start();
    int ends[6][2];
    for (int i = 0; i < 6; i++) {
        tcp_pair(AF_INET, ends[i]);
        at(ends[i][1], 200 + i);
    }
    R("close_range 200-201", close_range(200, 201, 0));
    drain("peer 0", ends[0][0]);
    drain("peer 1", ends[1][0]);
    R("recv on a closed one", recv(200, NULL, 0, 0));
    R("CLOEXEC 202-203", close_range(202, 203, CLOSE_RANGE_CLOEXEC));
    T("cloexec %d %d %d", fcntl(202, F_GETFD), fcntl(203, F_GETFD), fcntl(204, F_GETFD));
    T("open: %s", mask(poll1(ends[2][0], POLLIN | POLLRDHUP, 20)));
    R("backwards", close_range(10, 9, 0));
    R("a wrong flag", close_range(204, 204, 8));
    pid_t child = must_fork();
    if (child == 0) {
        for (int i = 0; i < 6; i++) close(ends[i][0]);
        close_range(3, ~0u, 0); // as Python's subprocess does
        T("child: %d", fcntl(204, F_GETFD));
        T("child's own socket: %d", tcp_socket(AF_INET));
        msleep(50);
        _exit(0);
    }
    reap("child", child);
    send_text(ends[4][0], "x");
    expect_text("unharmed by the child", 204, 1);
    closefrom(203);
    drain("peer 3", ends[3][0]);
    drain("peer 4", ends[4][0]);
    drain("peer 5", ends[5][0]);
    send_text(ends[2][0], "y");
    expect_text("below it", 202, 1);
    return 0;
}
