// shape: self
// Blocking: timeouts, O_NONBLOCK, MSG_DONTWAIT, a signal, a thread that waits while another sends.
#include "udp.h"
#include <sys/time.h>

static int ends[2];
static void nothing(int n) { (void)n; }
static struct gate asleep;
static pid_t waiter;
static void *wait_for_one(void *got) {
    char bytes[16];
    waiter = my_tid();
    gate_open(asleep);
    *(ssize_t *)got = recv(ends[1], bytes, sizeof bytes, 0);
    return NULL;
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        udp_pair(family, ends);
        char bytes[16];
        struct timeval t = {0, 50000};
        MUST(setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
        int64_t start = now_ms();
        R("recv", recv(ends[1], bytes, 16, 0));
        T("waited: %d", now_ms() - start >= 45);
        start = now_ms();
        R("MSG_DONTWAIT", recv(ends[1], bytes, 16, MSG_DONTWAIT));
        nonblock(ends[1]);
        R("O_NONBLOCK", recv(ends[1], bytes, 16, 0));
        T("at once: %d", now_ms() - start < 2000);
        blocking(ends[1]);
        t = (struct timeval){0, 0};
        MUST(setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
        ssize_t got = 0;
        asleep = make_gate();
        pthread_t thread = start_thread(wait_for_one, &got);
        gate_wait(asleep);
        wait_asleep(waiter);
        MUST(send(ends[0], "wake up", 7, 0));
        join(thread);
        T("woken with %zd", got);
        on_signal(SIGALRM, nothing, 0);
        struct itimerval soon = {{0, 0}, {0, 30000}};
        MUST(setitimer(ITIMER_REAL, &soon, NULL));
        R("a signal", recv(ends[1], bytes, 16, 0));
        signal(SIGALRM, SIG_DFL);
        alarm(CASE_ALARM_S);
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
