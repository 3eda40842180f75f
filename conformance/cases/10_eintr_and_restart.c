// shape: self
// A handler without SA_RESTART ends a blocked call with EINTR; with it, recv, send, accept and connect go on.
#include "case.h"

static int ends[2], listener, what;
static pid_t tid;
static long result;
static int error;
static volatile sig_atomic_t handled;
static void handler(int number) {
    (void)number;
    handled++;
}

static const char *const NAMES[] = {"recv", "read", "recvmsg", "accept", "poll", "epoll_wait", "select", "send"};

static void *blocked(void *argument) {
    (void)argument;
    static char block[1 << 20];
    struct iovec v = {block, 10};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
    int ep = MUST(epoll_create1(0));
    EP_ADD(ep, ends[1], EPOLLIN, 1);
    struct epoll_event e;
    struct pollfd p = {ends[1], POLLIN, 0};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[1], &set);
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    long r = 0;
    switch (what) {
    case 0: r = recv(ends[1], block, 10, 0); break;
    case 1: r = read(ends[1], block, 10); break;
    case 2: r = recvmsg(ends[1], &m, 0); break;
    case 3: r = accept(listener, NULL, NULL) < 0 ? -1 : 0; break;
    case 4: r = poll(&p, 1, -1); break;
    case 5: r = epoll_wait(ep, &e, 1, -1); break;
    case 6: r = select(ends[1] + 1, &set, NULL, NULL, NULL); break;
    case 7: r = send(ends[1], block, sizeof block, MSG_NOSIGNAL); break;
    }
    if (what == 7 && r > 0) r = 1; // how much went in before is not part of it
    result = r;
    error = errno;
    close(ep);
    return NULL;
}

int main(void) {
    case_start();
    for (int restart = 0; restart < 2; restart++) {
        T("-- SA_RESTART %d", restart);
        on_signal(SIGUSR1, handler, restart ? SA_RESTART : 0);
        for (what = 0; what < 8; what++) {
            tcp_pair(AF_INET, ends);
            listener = make_listener(AF_INET);
            if (what == 7) {
                small_buffers(ends[1], ends[0]);
                fill_up(ends[1]);
                blocking(ends[1]);
            }
            handled = 0;
            tid = 0;
            pthread_t t = start_thread(blocked, NULL);
            while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
            wait_asleep(tid);
            MUST0(pthread_kill(t, SIGUSR1));
            for (int64_t end = now_ms() + WAIT_MS; !handled && now_ms() < end;) msleep(1);
            int client = -1;
            if (restart) {
                wait_asleep(tid);
                if (what == 3)
                    client = connect_to(AF_INET, port_of(listener));
                else if (what == 7)
                    close_rst(ends[0]);
                else
                    send_text(ends[0], "data");
            }
            join(t);
            errno = error;
            R(NAMES[what], result);
            T("handled %d", handled);
            if (client >= 0) close(client);
            if (!(restart && what == 7)) close(ends[0]);
            close(ends[1]);
            close(listener);
        }
    }
    return 0;
}
