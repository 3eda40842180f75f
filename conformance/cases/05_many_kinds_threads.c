// shape: self
// A proxy's loop: poll over two sockets and a wake-up pipe, bytes pumped both ways until both ends are shut.
#include "case.h"

static int left[2], right[2], wake[2];

static void *proxy(void *argument) {
    (void)argument;
    struct pollfd p[3] = {{left[1], POLLIN, 0}, {right[0], POLLIN, 0}, {wake[0], POLLIN, 0}};
    int open = 2;
    while (open) {
        MUST(poll(p, 3, WAIT_MS));
        for (int i = 0; i < 2; i++) {
            if (!p[i].revents) continue;
            char block[4096];
            int other = i ? left[1] : right[0];
            ssize_t n = recv(p[i].fd, block, sizeof block, 0);
            if (n > 0)
                MUST(send_all(other, block, n));
            else {
                MUST(shutdown(other, SHUT_WR));
                p[i].fd = -1;
                open--;
            }
        }
        if (p[2].revents) {
            char c;
            MUST(read(wake[0], &c, 1));
            T("proxy: woken by the pipe");
        }
    }
    return NULL;
}

int main(void) {
    case_start();
    tcp_pair(AF_INET, left);
    tcp_pair(AF_INET6, right);
    MUST(pipe(wake));
    pthread_t t = start_thread(proxy, NULL);
    send_text(left[0], "to the right");
    expect_text("right", right[1], 12);
    send_text(right[1], "to the left");
    expect_text("left", left[0], 11);
    MUST(write(wake[1], "x", 1));
    static char block[300000], back[300000];
    fill(block, sizeof block, 5);
    pid_t sender = must_fork();
    if (sender == 0) {
        MUST(send_all(left[0], block, sizeof block));
        _exit(0);
    }
    R("through the proxy", recv_all(right[1], back, sizeof back));
    T("the same: %d", !memcmp(block, back, sizeof back));
    reap("sender", sender);
    MUST(shutdown(left[0], SHUT_WR));
    drain("right", right[1]);
    send_text(right[1], "half open");
    MUST(shutdown(right[1], SHUT_WR));
    drain("left", left[0]);
    join(t);
    return 0;
}
