// shape: self
// A reset wakes what is blocked: recv gives ECONNRESET, send too, poll and epoll ERR and HUP.
#include "case.h"

static int fd, how;
static pid_t tid;

static void *blocked(void *argument) {
    (void)argument;
    static char block[1 << 20];
    if (how == 1) {
        blocking(fd);
    }
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    if (how == 0) R("recv", recv(fd, block, 1, 0));
    if (how == 1) {
        ssize_t n;
        do n = send(fd, block, sizeof block, MSG_NOSIGNAL); // some of it may have gone in before
        while (n > 0);
        R("send", n);
    }
    if (how == 2) T("poll %s", mask(poll1(fd, POLLPRI, WAIT_MS)));
    return NULL;
}

int main(void) {
    case_start();
    for (how = 0; how < 3; how++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        fd = ends[0];
        if (how == 1) {
            small_buffers(ends[0], ends[1]);
            fill_up(fd);
        }
        tid = 0;
        pthread_t t = start_thread(blocked, NULL);
        while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
        wait_asleep(tid);
        close_rst(ends[1]);
        join(t);
        close(fd);
    }
    return 0;
}
