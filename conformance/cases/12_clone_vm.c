// shape: self
// A child that shares its parent's memory until it execs, as some runtimes spawn: its descriptors are its own, whatever it does to them.
#include "case.h"
#include <sched.h>

static char stack[65536] __attribute__((aligned(16)));
static int listener, ends[2], result, reason;
static char *by_number[3] = {"case", NULL, NULL};

static int closes(void *unused __attribute__((unused))) {
    close(ends[1]);
    close(listener);
    syscall(SYS_close, ends[0]);
    close_range(3, ~0u, 0);
    result = fcntl(ends[1], F_GETFD);
    reason = errno;
    return 1;
}
static int moves(void *unused __attribute__((unused))) {
    int null = open("/dev/null", O_RDWR);
    dup2(null, ends[1]);
    syscall(SYS_dup3, null, ends[0], 0);
    dup(listener);
    fcntl(listener, F_DUPFD, 30);
    close(listener);
    dup2(null, listener);
    result = write(ends[1], "nowhere", 7);
    return 2;
}
static int shares(void *unused __attribute__((unused))) {
    result = send(ends[1], "of the child", 12, 0);
    close(ends[1]);
    return 3;
}
static int fails(void *unused __attribute__((unused))) {
    fcntl(ends[1], F_SETFD, 0);
    execv("/nonexistent", by_number);
    reason = errno;
    return 4;
}
static int execs_by_number(void *unused __attribute__((unused))) {
    fcntl(ends[1], F_SETFD, 0);
    execv("/proc/self/exe", by_number);
    return 99;
}
// As inetd does it.
static int execs_on_stdin(void *unused __attribute__((unused))) {
    char *argv[] = {"case", "0", NULL};
    dup2(ends[1], 0);
    closefrom(3);
    execv("/proc/self/exe", argv);
    return 99;
}

static pid_t make(int (*f)(void *), int flags) { return clone(f, stack + sizeof stack, CLONE_VM | SIGCHLD | flags, NULL); }

static void both_ways(void) {
    send_text(ends[0], "there");
    expect_text("there", ends[1], 5);
    send_text(ends[1], "back");
    expect_text("back", ends[0], 4);
    int client = connect_to(AF_INET, port_of(listener));
    int taken = RF("accept", accept(listener, NULL, NULL));
    close(taken);
    drain("client", client);
    close(client);
    int lowest = dup(0);
    T("lowest number: %d", lowest);
    close(lowest);
}

static int new_image(int fd) {
    alarm(CASE_ALARM_S);
    char line[16];
    ssize_t n = recv(fd, line, sizeof line, 0);
    if (n > 0) send(fd, line, n, 0);
    return n == 5 ? 7 : 8;
}

int main(int argc, char **argv) {
    if (argc > 1) return new_image(atoi(argv[1]));
    case_start();
    listener = make_listener(AF_INET);
    for (int flags = 0; flags <= CLONE_VFORK; flags += CLONE_VFORK) {
        T("-- %s", flags ? "CLONE_VM | CLONE_VFORK" : "CLONE_VM");
        tcp_pair(AF_INET, ends);
        char number[16];
        sprintf(number, "%d", ends[1]);
        by_number[1] = number;
        for (int i = 0; i < 2; i++) MUST(fcntl(ends[i], F_SETFD, FD_CLOEXEC));
        MUST(fcntl(listener, F_SETFD, FD_CLOEXEC));
        reap("closes", MUST(make(closes, flags)));
        T("seen by it: %d %s", result, ename(reason));
        both_ways();
        reap("moves", MUST(make(moves, flags)));
        T("written by it: %d", result);
        both_ways();
        reap("shares", MUST(make(shares, flags)));
        T("sent by it: %d", result);
        expect_text("from it", ends[0], 12);
        both_ways();
        reap("fails", MUST(make(fails, flags)));
        T("its reason: %s", ename(reason));
        both_ways();
        for (int way = 0; way < 2; way++) {
            // The parent closes at once what the new image serves.
            pid_t child = MUST(make(way ? execs_on_stdin : execs_by_number, flags));
            close(ends[1]);
            send_text(ends[0], "image");
            expect_text("the new image", ends[0], 5);
            drain("the new image", ends[0]);
            reap("the new image", child);
            close(ends[0]);
            tcp_pair(AF_INET, ends);
            for (int i = 0; i < 2; i++) MUST(fcntl(ends[i], F_SETFD, FD_CLOEXEC));
            T("as before: %d", atoi(number) == ends[1]);
            both_ways();
        }
        // A parent that is killed after that is dead, and nothing of it is left.
        pid_t parent = must_fork();
        if (parent == 0) {
            close(ends[0]);
            wait_for(make(execs_on_stdin, flags));
            pause();
        }
        close(ends[1]);
        send_text(ends[0], "image");
        expect_text("the new image", ends[0], 5);
        msleep(100);
        kill(parent, SIGKILL);
        reap("the parent", parent);
        drain("the parent's end", ends[0]);
        close(ends[0]);
    }
    return 0;
}
