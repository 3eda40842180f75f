// shape: self
// SCM_RIGHTS hands a connection to another process, which goes on where the first one stopped.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int ends[2], channel[2];
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
        pid_t child = must_fork();
        if (child == 0) {
            close(channel[0]);
            int fd = scm_receive(channel[1]);
            T("received: SO_TYPE is stream: %d", get_int(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM);
            expect_text("child", fd, 6);
            send_text(fd, "from child");
            _exit(0);
        }
        close(channel[1]);
        tcp_pair(family, ends);
        send_text(ends[0], "firstsecond");
        expect_text("parent", ends[1], 5);
        scm_send(channel[0], ends[1]);
        close(ends[1]);
        expect_text("peer", ends[0], 10);
        reap("child", child);
        drain("peer", ends[0]);
        close(ends[0]);
        close(channel[0]);
    }
    return 0;
}
