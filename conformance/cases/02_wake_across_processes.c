// shape: self
// A child blocked in recv on an inherited socket wakes by data and by EOF that its parent causes.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2];
        tcp_pair(family, ends);
        pid_t child = must_fork();
        if (child == 0) {
            close(ends[0]);
            expect_text("child", ends[1], 4);
            drain("child", ends[1]);
            _exit(0);
        }
        wait_asleep(child);
        send_text(ends[0], "wake");
        wait_asleep(child);
        close(ends[0]);
        reap("child", child);
        close(ends[1]);
    }
    return 0;
}
