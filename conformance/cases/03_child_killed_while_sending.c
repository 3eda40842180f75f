// shape: self
// A child is killed at any point of a send or recv loop on a shared socket: the socket itself lives on.
#include "case.h"

int main(void) {
    case_start();
    for (int round = 0; round < 10; round++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        pid_t child = must_fork();
        if (child == 0) {
            char block[4096];
            memset(block, 'c', sizeof block);
            for (;;) {
                ssize_t n = round % 2 ? recv(ends[1], block, sizeof block, 0) : send(ends[1], block, sizeof block, 0);
                if (n < 0) _exit(1);
            }
        }
        // The peer takes (or gives) some of it, then the child dies in the middle of a call.
        char block[5000];
        memset(block, 'p', sizeof block);
        for (int i = 0; i < 20; i++)
            MUST(round % 2 ? send_all(ends[0], block, sizeof block) : recv_all(ends[0], block, sizeof block));
        kill(child, SIGKILL);
        reap("child", child);
        if (round % 2 == 0) {
            // Whatever the child got in, then what the parent sends, then EOF: nothing lost after it.
            MUST(shutdown(ends[0], SHUT_WR));
            send_text(ends[1], "!");
            MUST(shutdown(ends[1], SHUT_WR));
            char last = 0;
            bool only_c = true;
            ssize_t n;
            while ((n = recv(ends[0], block, sizeof block, 0)) > 0) {
                for (ssize_t i = 0; i < n; i++) only_c &= block[i] == 'c' || block[i] == '!';
                last = block[n - 1];
            }
            T("sent: intact %d, last byte %c, then %zd", only_c, last, n);
        } else {
            MUST(shutdown(ends[0], SHUT_WR));
            ssize_t n;
            bool only_p = true;
            while ((n = recv(ends[1], block, sizeof block, 0)) > 0)
                for (ssize_t i = 0; i < n; i++) only_p &= block[i] == 'p';
            T("received: intact %d, then %zd", only_p, n);
        }
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}
