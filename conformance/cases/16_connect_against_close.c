// shape: self
// connect and close from two threads, two hundred times: no hang, no stray descriptor, the server goes on.
#include "case.h"

static int fd, port;
static void *closer(void *argument) {
    (void)argument;
    close(fd);
    return NULL;
}
static void *acceptor(void *argument) {
    int listener = *(int *)argument;
    for (;;) {
        int taken = accept(listener, NULL, NULL);
        if (taken < 0) return NULL;
        close(taken);
    }
}
static int open_fds(void) {
    int count = 0;
    for (int i = 0; i < 200; i++) count += fcntl(i, F_GETFD) >= 0;
    return count;
}

int main(void) {
    case_start();
    int listener = make_listener(AF_INET);
    port = port_of(listener);
    pthread_t a = start_thread(acceptor, &listener);
    int before = open_fds();
    for (int i = 0; i < 200; i++) {
        fd = MUST(socket(AF_INET, SOCK_STREAM | (i % 2 ? SOCK_NONBLOCK : 0), 0));
        pthread_t t = start_thread(closer, NULL);
        int result = connect_fd(fd, AF_INET, port);
        if (result < 0 && errno != EBADF && errno != EINPROGRESS) T("connect: %s", ename(errno));
        join(t);
    }
    int last = connect_to(AF_INET, port);
    drain("the server goes on", last);
    close(last);
    shutdown(listener, SHUT_RDWR);
    join(a);
    T("no descriptor left over: %d", open_fds() == before);
    return 0;
}
