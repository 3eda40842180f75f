// shape: self
// What the kernel keeps per open file is each socket's own, and every socket is found again after an exec: by execve, by number, with
// every descriptor in use, and in the child of a raw fork.
#include "case.h"

enum { SOCKETS = 40 };

// The next image: writes its number on each socket that it was told of.
static int next_image(char **words) {
    for (int i = 2; words[i]; i++) {
        char text[32];
        snprintf(text, sizeof text, "%s%d", words[1], i);
        int fd = atoi(words[i]);
        R("write", write(fd, text, strlen(text)));
        T("nonblock %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    }
    return 0;
}

static void exec_with(const char *what, int *fds, int n, bool by_number) {
    static char numbers[SOCKETS][12];
    char *words[SOCKETS + 3] = {"/proc/self/exe", (char *)what};
    for (int i = 0; i < n; i++) {
        snprintf(numbers[i], sizeof numbers[i], "%d", fds[i]);
        words[2 + i] = numbers[i];
    }
    if (by_number) syscall(SYS_execve, words[0], words, environ);
    else execve(words[0], words, environ);
    _exit(99);
}

static void files(void) {
    int a[2], b[2];
    struct stat sa, sb, sd;
    tcp_pair(AF_INET, a);
    tcp_pair(AF_INET, b);
    int d = dup(a[0]);
    R("fstat", fstat(a[0], &sa) | fstat(b[0], &sb) | fstat(d, &sd));
    T("two sockets are one file: %d", sa.st_ino == sb.st_ino && sa.st_dev == sb.st_dev);
    T("a socket and its dup are one file: %d", sa.st_ino == sd.st_ino && sa.st_dev == sd.st_dev);
    T("sockets: %d %d", S_ISSOCK(sa.st_mode) != 0, S_ISSOCK(sb.st_mode) != 0);
    R("F_SETFL", fcntl(a[0], F_SETFL, O_NONBLOCK));
    T("nonblock: itself %d, its dup %d, another %d", (fcntl(a[0], F_GETFL) & O_NONBLOCK) != 0,
      (fcntl(d, F_GETFL) & O_NONBLOCK) != 0, (fcntl(b[0], F_GETFL) & O_NONBLOCK) != 0);
    int off = 0, on = 1;
    R("FIONBIO", ioctl(d, FIONBIO, &off));
    T("nonblock: itself %d", (fcntl(a[0], F_GETFL) & O_NONBLOCK) != 0);
    R("FIONBIO", ioctl(b[1], FIONBIO, &on));
    T("access mode %d, nonblock %d", fcntl(b[1], F_GETFL) & O_ACCMODE, (fcntl(b[1], F_GETFL) & O_NONBLOCK) != 0);
    R("F_SETOWN", fcntl(b[1], F_SETOWN, getpid()));
    T("owner: itself %d, another %d", fcntl(b[1], F_GETOWN) == getpid(), fcntl(b[0], F_GETOWN));
    T("after that nonblock %d", (fcntl(b[1], F_GETFL) & O_NONBLOCK) != 0);
    R("F_SETFD", fcntl(a[1], F_SETFD, FD_CLOEXEC));
    T("close-on-exec: itself %d, another %d", fcntl(a[1], F_GETFD), fcntl(b[1], F_GETFD));
    send_text(a[0], "still there");
    expect_text("through", a[1], 11);
    close(a[0]), close(a[1]), close(b[0]), close(b[1]), close(d);
}

static void heard(const char *what, int *ends, int n) {
    for (int i = 0; i < n; i++) {
        char text[64] = "";
        int got = read(ends[i], text, sizeof text - 1);
        T("%s, socket %d: %d %s", what, i, got, text);
    }
}

static void pairs(int *near, int *far) {
    for (int i = 0; i < 3; i++) {
        int ends[2];
        tcp_pair(AF_INET, ends);
        near[i] = ends[0], far[i] = ends[1];
    }
    MUST(fcntl(far[1], F_SETFL, O_NONBLOCK));
}

// Started with a low limit: an exec with no number left. What fills them closes at the exec, since the next image has files to open.
static int with_no_number_left(void) {
    int near[3], far[3];
    case_start();
    pairs(near, far);
    pid_t child = must_fork();
    if (child == 0) {
        while (fcntl(far[0], F_DUPFD_CLOEXEC, 0) >= 0) {}
        if (errno != EMFILE) _exit(97);
        exec_with("full", far, 3, false);
    }
    reap("all descriptors in use", child);
    heard("all descriptors in use", near, 3);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2) return next_image(argv);
    if (argc > 1) return with_no_number_left();
    case_start();
    files();
    int near[3], far[3];
    pairs(near, far);
    pid_t child = must_fork();
    if (child == 0) exec_with("execve", far, 3, false);
    reap("execve", child);
    heard("execve", near, 3);
    child = must_fork();
    if (child == 0) exec_with("number", far, 3, true);
    reap("by number", child);
    heard("by number", near, 3);

    child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        if (write(far[0], "raw fork", 8) != 8) _exit(98);
        exec_with("raw", far, 3, false);
    }
    reap("raw fork and exec", child);
    expect_text("raw fork", near[0], 8);
    heard("raw fork and exec", near, 3);

    child = must_fork();
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 128, .rlim_max = 128};
        MUST(setrlimit(RLIMIT_NOFILE, &limit));
        execl("/proc/self/exe", "case", "full", NULL);
        _exit(99);
    }
    reap("with a low limit", child);
    return 0;
}
