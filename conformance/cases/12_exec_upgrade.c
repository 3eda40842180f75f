// shape: server
// As nginx upgrades: the old master execs a new one with the listener, both serve for a while, the old one ends.
#include "case.h"

static void serve(int listener, int count, const char *who) {
    for (int i = 0; i < count; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        send_text(fd, who);
        close(fd);
    }
}

static void client_role(int port) {
    for (int i = 0; i < 6; i++) {
        int fd = connect_to(AF_INET, port);
        expect_text("served by", fd, 3);
        close(fd);
        if (i == 2) tell("three");
    }
}

int main(int argc, char **argv) {
    if (argc == 3) {
        case_start();
        int listener = atoi(argv[2]);
        T("new master: listening %d", get_int(listener, SOL_SOCKET, SO_ACCEPTCONN));
        tell("new-up");
        await("old-gone");
        serve(listener, 3, "new");
        return 0;
    }
    if (!is_server(argc, argv)) {
        client_role(await_number("port"));
        return 0;
    }
    int listener = make_listener(AF_INET);
    pid_t child = must_fork();
    if (child == 0) {
        char number[16];
        sprintf(number, "%d", listener);
        execl("/proc/self/exe", "case", "upgraded", number, NULL);
        _exit(127);
    }
    await("new-up");
    tell_number("port", port_of(listener));
    serve(listener, 3, "old");
    await("three");
    close(listener);
    tell("old-gone");
    reap("new master", child);
    return 0;
}
