// shape: self
// A handler that itself sends, receives, polls and closes, while the main program is inside socket calls.
#include "case.h"

static int answer_fd, main_fd;
static volatile sig_atomic_t sent;
static void handler(int number) {
    (void)number;
    int error = errno;
    char c = '.';
    if (send(answer_fd, &c, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) sent++;
    recv(answer_fd, &c, 1, MSG_DONTWAIT);
    struct pollfd p = {answer_fd, POLLOUT, 0};
    poll(&p, 1, 0);
    close(dup(answer_fd));
    errno = error;
}

int main(void) {
    case_start();
    int ends[2], answers[2];
    tcp_pair(AF_INET, ends);
    tcp_pair(AF_INET, answers);
    main_fd = ends[0];
    answer_fd = answers[0];
    on_signal(SIGUSR1, handler, SA_RESTART);
    pid_t parent = getpid();
    pid_t echo = must_fork();
    if (echo == 0) {
        signal(SIGUSR1, SIG_IGN);
        char block[4096];
        ssize_t n;
        close(ends[0]);
        while ((n = recv(ends[1], block, sizeof block, 0)) > 0) MUST(send_all(ends[1], block, n));
        _exit(0);
    }
    close(ends[1]);
    pid_t pester = must_fork();
    if (pester == 0) {
        close(ends[0]);
        for (int i = 0; i < 300; i++) {
            kill(parent, SIGUSR1);
            struct timespec t = {0, 300000};
            nanosleep(&t, NULL);
        }
        _exit(0);
    }
    int good = 0;
    for (int i = 0; i < 400; i++) {
        char out[2000], in[2000];
        fill(out, sizeof out, i);
        MUST(send_all(ends[0], out, sizeof out));
        good += recv_all(ends[0], in, sizeof in) == sizeof in && !memcmp(in, out, sizeof in);
    }
    T("echoed well: %d", good);
    reap("pester", pester);
    // The same signal twice at once is one, and a full buffer takes nothing: so no count, but every byte sent arrives.
    MUST(shutdown(answers[0], SHUT_WR));
    char dots[400];
    ssize_t n = recv_all(answers[1], dots, sizeof dots);
    T("every byte sent: %d, some: %d", n == sent, sent > 0);
    MUST(shutdown(ends[0], SHUT_WR));
    reap("echo", echo);
    return 0;
}
