// shape: self
// As redis saves: the parent echoes on a connection all the while, and forks children that just end.
#include "case.h"

static void *echo(void *argument) {
    int fd = *(int *)argument;
    char text[512];
    ssize_t n;
    while ((n = recv(fd, text, sizeof text, 0)) > 0)
        if (send_all(fd, text, n) != n) break;
    return NULL;
}

int main(void) {
    case_start();
    int ends[2];
    tcp_pair(AF_INET, ends);
    pthread_t t = start_thread(echo, &ends[1]);
    int good = 0;
    for (int i = 0; i < 20; i++) {
        pid_t child = must_fork();
        if (child == 0) {
            if (i % 2) raise(SIGKILL);
            _exit(0);
        }
        for (int k = 0; k < 20; k++) {
            char out[100], in[100];
            fill(out, sizeof out, i * 20 + k);
            MUST(send_all(ends[0], out, sizeof out));
            good += recv_all(ends[0], in, sizeof in) == 100 && !memcmp(in, out, 100);
        }
        wait_for(child);
    }
    T("echoed well: %d", good);
    MUST(shutdown(ends[0], SHUT_WR));
    join(t);
    T("done");
    return 0;
}
