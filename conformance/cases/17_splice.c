// shape: self
// splice between a socket and a pipe both ways, as haproxy does; flags, EAGAIN, EOF; tee is between pipes only.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], pipes[2];
    char text[64] = {0};
    tcp_pair(AF_INET, ends);
    MUST(pipe(pipes));
    send_text(ends[0], "from the socket");
    wait_bytes(ends[1], 15);
    R("socket to pipe", splice(ends[1], NULL, pipes[1], NULL, 100, 0));
    R("read", read(pipes[0], text, sizeof text));
    T("%s", text);
    nonblock(ends[1]); // SPLICE_F_NONBLOCK is about the pipe alone
    R("nothing there", splice(ends[1], NULL, pipes[1], NULL, 100, SPLICE_F_NONBLOCK));
    blocking(ends[1]);
    MUST(write(pipes[1], "from the pipe", 13));
    R("pipe to socket", splice(pipes[0], NULL, ends[1], NULL, 5, SPLICE_F_MOVE | SPLICE_F_MORE));
    R("pipe to socket", splice(pipes[0], NULL, ends[1], NULL, 100, 0));
    expect_text("peer", ends[0], 13);
    loff_t offset = 0;
    R("an offset into a socket", splice(ends[1], &offset, pipes[1], NULL, 1, 0));
    R("socket to socket", splice(ends[1], NULL, ends[0], NULL, 1, 0));
    R("of nothing", splice(ends[1], NULL, pipes[1], NULL, 0, 0));
    close(ends[0]);
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    R("at EOF", splice(ends[1], NULL, pipes[1], NULL, 100, 0));
    return 0;
}
