// shape: self
// A blocking connect that gets no answer ends by SO_SNDTIMEO with EINPROGRESS; close ends one in progress.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener_n(AF_INET, 0), port = port_of(listener), fds[16], count = 0;
    do {
        fds[count] = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
        connect_fd(fds[count], AF_INET, port);
    } while ((poll1(fds[count++], POLLOUT, 300) & POLLOUT) && count < 16);
    int fd = tcp_socket(AF_INET);
    struct timeval limit = {0, 200000};
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit));
    int64_t begun = now_ms();
    R("connect", connect_fd(fd, AF_INET, port));
    int64_t took = now_ms() - begun;
    T("after the time: %d", took >= 190 && took < 5000);
    R("connect goes on", connect_fd(fd, AF_INET, port));
    R("close", close(fd));
    R("close of one in progress", close(fds[count - 1]));
    return 0;
}
