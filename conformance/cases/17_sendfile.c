// shape: self
// What sendfile does: its offset rules, the file position, counts past the end, wrong descriptors, a non-blocking socket.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], file = MUST(memfd_create("file", 0));
    static char block[200000], back[200000];
    fill(block, sizeof block, 31);
    MUST(write(file, block, sizeof block));
    lseek(file, 0, SEEK_SET);
    signal(SIGPIPE, SIG_IGN);
    tcp_pair(AF_INET, ends);
    off_t offset = 1000;
    R("with an offset", sendfile(ends[0], file, &offset, 5000));
    T("offset %ld, position %ld", (long)offset, (long)lseek(file, 0, SEEK_CUR));
    R("received", recv_all(ends[1], back, 5000));
    T("the same %d", !memcmp(back, block + 1000, 5000));
    R("without one", sendfile(ends[0], file, NULL, 3000));
    T("position %ld", (long)lseek(file, 0, SEEK_CUR));
    R("received", recv_all(ends[1], back, 3000));
    T("the same %d", !memcmp(back, block, 3000));
    offset = sizeof block - 10;
    R("past the end", sendfile(ends[0], file, &offset, 1000));
    R("at the end", sendfile(ends[0], file, &offset, 1000));
    R("received", recv_all(ends[1], back, 10));
    offset = 0;
    R("of nothing", sendfile(ends[0], file, &offset, 0));
    R("from a socket", sendfile(ends[0], ends[1], NULL, 10));
    R("from a bad fd", sendfile(ends[0], 999, NULL, 10));
    R("to a bad fd", sendfile(999, file, NULL, 10));
    offset = -1;
    R("a negative offset", sendfile(ends[0], file, &offset, 10));
    R("to a fresh socket", sendfile(tcp_socket(AF_INET), file, NULL, 10));
    pid_t child = must_fork();
    if (child == 0) {
        offset = 0;
        while (offset < (off_t)sizeof block) MUST(sendfile(ends[0], file, &offset, sizeof block));
        MUST(shutdown(ends[0], SHUT_WR));
        _exit(0);
    }
    drain("whole file", ends[1]);
    reap("child", child);
    T("sum %016llx", (unsigned long long)sum(block, sizeof block));
    close(ends[0]);
    close(ends[1]);
    tcp_pair(AF_INET, ends);
    small_buffers(ends[0], ends[1]);
    fill_up(ends[0]);
    offset = 0;
    ssize_t n, all = 0;
    while ((n = sendfile(ends[0], file, &offset, 100)) > 0) all += n; // a little may go in yet
    R("full, non-blocking", n);
    T("the offset is what went in: %d", offset == all);
    close(ends[1]);
    wait_mask(ends[0], POLLOUT, POLLHUP | POLLERR);
    sendfile(ends[0], file, &offset, 100); // takes the reset
    R("after the peer's end", sendfile(ends[0], file, &offset, 100));
    return 0;
}
