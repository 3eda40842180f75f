// shape: self
// A forking server whose children are made by system call number, as vsftpd's are: the parent closes at once what the child serves.
#include "case.h"

#include <linux/sched.h>

enum { WAYS = 3 };

static pid_t raw_fork(int way) {
    struct clone_args args = {.exit_signal = SIGCHLD};
    switch (way) {
    case 0: return syscall(SYS_fork);
    case 1: return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);
    default: return syscall(SYS_clone3, &args, sizeof args);
    }
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int listener = make_listener(family), port = port_of(listener);
        for (int way = 0; way < WAYS; way++) {
            int client = connect_to(family, port), fd = MUST(accept(listener, NULL, NULL));
            pid_t child = MUST(raw_fork(way));
            if (child == 0) {
                close(listener);
                // Only after the parent has closed its descriptor: the client says so.
                char line[16];
                ssize_t n = recv(fd, line, sizeof line, 0);
                if (n > 0) MUST(send(fd, line, n, 0));
                _exit(0);
            }
            close(fd);
            send_text(client, "hello");
            expect_text("echo", client, 5);
            drain("echo", client);
            reap("child", child);
            close(client);
        }
        R("a clone that is none", syscall(SYS_clone3, NULL, 0));
        close(listener);
    }
    return 0;
}
