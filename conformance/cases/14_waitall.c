// shape: self
// MSG_WAITALL waits for all, ends short at EOF and reset, and at a handler's signal gives what it has.
#include "case.h"

static int fd;
static pid_t tid;
static long result;
static char text[16];
static void handler(int number) { (void)number; }
static void *waiter(void *argument) {
    (void)argument;
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    result = recv(fd, text, 10, MSG_WAITALL);
    return NULL;
}
static pthread_t asleep(void) {
    tid = 0;
    memset(text, 0, sizeof text);
    pthread_t t = start_thread(waiter, NULL);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
    wait_asleep(tid);
    return t;
}

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    fd = ends[1];
    pthread_t t = asleep();
    send_text(ends[0], "abc");
    wait_asleep(tid);
    send_text(ends[0], "defg");
    wait_asleep(tid);
    send_text(ends[0], "hijkl");
    join(t);
    T("whole: %ld %s", result, text);
    expect_text("rest", fd, 2);
    on_signal(SIGUSR1, handler, 0);
    t = asleep();
    send_text(ends[0], "part");
    wait_asleep(tid);
    MUST0(pthread_kill(t, SIGUSR1));
    join(t);
    T("signal: %ld %s", result, text);
    t = asleep();
    send_text(ends[0], "part");
    wait_asleep(tid);
    MUST(shutdown(ends[0], SHUT_WR));
    join(t);
    T("EOF: %ld %s", result, text);
    nonblock(fd);
    R("non-blocking", recv(fd, text, 10, MSG_WAITALL));
    return 0;
}
