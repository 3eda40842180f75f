// shape: self
// Thirty children close, shut nothing down and exit in every order; the parent's ten connections stay whole.
#include "case.h"

int main(void) {
    case_start();
    int ends[10][2];
    for (int i = 0; i < 10; i++) tcp_pair(i % 2 ? AF_INET : AF_INET6, ends[i]);
    pid_t children[30];
    for (int k = 0; k < 30; k++)
        if ((children[k] = must_fork()) == 0) {
            for (int i = 0; i < k % 10; i++) close(ends[i][k % 2]);
            if (k % 3 == 0) raise(SIGKILL);
            _exit(k % 3 == 1);
        }
    for (int k = 0; k < 30; k++) reap("child", children[k]);
    for (int i = 0; i < 10; i++) {
        T("masks %s %s", mask(poll1(ends[i][0], ALL_EVENTS, 0)), mask(poll1(ends[i][1], ALL_EVENTS, 0)));
        send_text(ends[i][0], "whole");
        expect_text("server", ends[i][1], 5);
        close(ends[i][1]);
        drain("client", ends[i][0]);
    }
    return 0;
}
