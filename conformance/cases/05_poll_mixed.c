// shape: self
// poll over TCP, a listener, pipe, eventfd, a regular file, a closed fd and a negative one.
#include "case.h"

int main(void) {
    case_start();
    int ends[2], pipes[2], listener = make_listener(AF_INET), event = MUST(eventfd(0, 0));
    int file = MUST(open("/proc/self/exe", O_RDONLY));
    tcp_pair(AF_INET6, ends);
    MUST(pipe(pipes));
    struct pollfd p[] = {{ends[1], POLLIN, 9},  {listener, POLLIN, 9}, {pipes[0], POLLIN, 9}, {event, POLLIN, 9},
                         {file, POLLIN, 9},     {999, POLLIN, 9},      {-1, POLLIN, 9},       {ends[0], POLLOUT, 9}};
    for (int step = 0; step < 7; step++) {
        if (step == 1) send_text(ends[0], "x"), wait_bytes(ends[1], 1);
        if (step == 2) connect_to(AF_INET, port_of(listener)), wait_mask(listener, POLLIN, POLLIN);
        if (step == 3) MUST(write(pipes[1], "x", 1));
        if (step == 4) MUST(eventfd_write(event, 1));
        if (step == 5) close(pipes[1]);
        if (step == 6) close(ends[0]), wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
        int n = poll(p, 8, WAIT_MS);
        char line[300];
        int at = sprintf(line, "%d:", n);
        for (int i = 0; i < 8; i++) at += sprintf(line + at, " %s", mask((uint16_t)p[i].revents));
        T("%s", line);
    }
    p[4].fd = p[5].fd = -1;
    p[0].fd = p[1].fd = p[2].fd = p[3].fd = p[7].fd = -1;
    R("nothing left to wait for", poll(p, 8, 20));
    R("poll of no fds", poll(NULL, 0, 20));
    return 0;
}
