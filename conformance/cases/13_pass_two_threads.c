// shape: self
// Two threads pass the same connection at the same time and close it: each message carries it, whichever is taken first.
#include "case.h"
#include "scm.h"

#define TIMES 200

static int shared_fd;
static pthread_barrier_t start;

static void *pass(void *channel) {
    pthread_barrier_wait(&start);
    scm_send((int)(intptr_t)channel, shared_fd);
    return NULL;
}

int main(void) {
    case_start();
    int channels[2][2], served = 0;
    for (int i = 0; i < 2; i++) MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channels[i]));
    MUST0(pthread_barrier_init(&start, NULL, 2));
    for (int n = 0; n < TIMES; n++) {
        int ends[2];
        char c;
        tcp_pair(AF_INET, ends);
        shared_fd = ends[1];
        pthread_t t[2];
        for (int i = 0; i < 2; i++) t[i] = start_thread(pass, (void *)(intptr_t)channels[i][0]);
        join(t[0]), join(t[1]);
        close(ends[1]);
        // The first is dropped: the connection lives by the other alone.
        close(scm_receive(channels[n & 1][1]));
        usleep(n % 4 * 500);
        int fd = scm_receive(channels[!(n & 1)][1]);
        send_text(ends[0], "x");
        served += recv_all(fd, &c, 1) == 1;
        close(fd);
        close(ends[0]);
    }
    T("served %d of %d", served, TIMES);
    return 0;
}
