// shape: self
// File actions of posix_spawn name a descriptor: each time they are used, the child gets the socket that is there then.
#include "case.h"

int main(void) {
    case_start();
    enum { NUMBER = 50 };
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    // Before any socket is there.
    posix_spawn_file_actions_adddup2(&actions, NUMBER, 1);
    for (int i = 0; i < 3; i++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        if (fcntl(ends[1], F_DUPFD_CLOEXEC, NUMBER) != NUMBER) return 98;
        close(ends[1]);
        char *words[] = {"echo", "from the child", NULL};
        pid_t child;
        R("posix_spawn", posix_spawn(&child, "/bin/echo", &actions, NULL, words, environ));
        close(NUMBER);
        reap("child", child);
        drain("got", ends[0]);
        close(ends[0]);
    }
    posix_spawn_file_actions_destroy(&actions);
    return 0;
}
