// shape: self
// Another thread's close does not wake a blocked recv, shutdown does; a blocked accept likewise.
#include "case.h"

static int fd, how;
static pid_t tid;
static long result;
static int error;
static void *blocked(void *argument) {
    (void)argument;
    char c;
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    result = how == 2 ? accept(fd, NULL, NULL) : recv(fd, &c, 1, 0);
    error = errno;
    return NULL;
}
static pthread_t asleep(void) {
    tid = 0;
    result = 99;
    pthread_t t = start_thread(blocked, NULL);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
    wait_asleep(tid);
    return t;
}
static void show(const char *what, pthread_t t) {
    join(t);
    errno = error;
    R(what, result);
}

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    fd = ends[1];
    pthread_t t = asleep();
    R("close", close(fd));
    msleep(100);
    T("still blocked: %d", __atomic_load_n(&result, __ATOMIC_SEQ_CST) == 99);
    send_text(ends[0], "x"); // the blocked call holds the socket, so this arrives
    show("recv", t);
    close(ends[0]);

    tcp_pair(AF_INET, ends);
    fd = ends[1];
    t = asleep();
    R("shutdown", shutdown(fd, SHUT_RD));
    show("recv", t);
    t = asleep();
    show("recv at once", t);
    close(ends[0]);
    close(fd);

    tcp_pair(AF_INET, ends);
    fd = ends[1];
    t = asleep();
    R("shutdown both", shutdown(fd, SHUT_RDWR));
    show("recv", t);
    drain("peer", ends[0]);
    close(ends[0]);
    close(fd);
    return 0;
}
