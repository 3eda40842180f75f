// shape: self
// A program that limits its address space, as vsftpd and whoever runs after `ulimit -v` do, still has its sockets, and what it
// has set is what it reads.
#include "case.h"

#include <sys/mman.h>
#include <sys/resource.h>

static void served(const char *what) {
    int ends[2];
    tcp_pair(AF_INET, ends);
    send_text(ends[0], "hello");
    expect_text(what, ends[1], 5);
    close(ends[0]);
    close(ends[1]);
}

static void limit(const char *what) {
    struct rlimit now;
    R(what, getrlimit(RLIMIT_AS, &now));
    T("%s: %llu MiB of %s", what, (unsigned long long)now.rlim_cur >> 20,
      now.rlim_max == RLIM_INFINITY ? "any" : "some");
}

static void maps(const char *what, size_t mib) {
    void *at = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    T("%s: %s", what, at == MAP_FAILED ? ename(errno) : "mapped");
    if (at != MAP_FAILED) munmap(at, mib << 20);
}

int main(int argc, char **argv) {
    if (argc > 1 && argv[1]) {
        served("after exec");
        limit("after exec");
        return 0;
    }
    case_start();
    struct rlimit small = {200 << 20, RLIM_INFINITY}, hard = {100 << 20, 150 << 20};
    R("set", setrlimit(RLIMIT_AS, &small));
    limit("soft");
    maps("20 MiB", 20);
    maps("400 MiB", 400);
    served("with a limit");
    pid_t child = must_fork();
    if (child == 0) {
        served("in a child");
        R("prlimit", prlimit(0, RLIMIT_AS, &hard, &small));
        limit("hard");
        execl("/proc/self/exe", "again", "again", NULL);
        _exit(1);
    }
    reap("child", child);
    return 0;
}
