// What every conformance case stands on: an event trace on stdout, bounded waiting, loopback sockets.
//
// A case prints only what must be the same natively and as a guest: results, errno by name, event masks by
// name, lengths and checksums, order. Never addresses, ports, pids, fd numbers (one case excepted) or times.
// A trace line is one write(2), so processes that share stdout cannot tear each other's lines.
//
// TCP promises order, not promptness: never print what "is there by now"; wait for it with wait_mask() or
// wait_bytes() first, and only then look.
#ifndef CASE_H
#define CASE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CASE_ALARM_S
#define CASE_ALARM_S 20
#endif
#define WAIT_MS 10000 // the longest wait for something that has to happen
#define QUIET_MS 60   // how long "nothing more happens" is watched for

// ---- trace ---------------------------------------------------------------------------------------------

static void T(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void T(const char *format, ...) {
    char line[1024];
    int saved = errno;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n > (int)sizeof line - 2) n = sizeof line - 2;
    line[n++] = '\n';
    if (write(STDOUT_FILENO, line, n) != n) _exit(98);
    errno = saved;
}

static const char *ename(int error) {
    if (error == 0) return "0";
    const char *name = strerrorname_np(error);
    return name ? name : "E?";
}

// Prints "what = result" or "what = -1 ENAME"; gives the result back and keeps errno.
static long R_(const char *what, long result) {
    if (result < 0)
        T("%s = %ld %s", what, result, ename(errno));
    else
        T("%s = %ld", what, result);
    return result;
}
#define R(what, call) R_(what, (long)(call))

// The same for calls that return a descriptor, whose number is not part of the trace.
static int RF_(const char *what, int fd) {
    if (fd < 0)
        T("%s = -1 %s", what, ename(errno));
    else
        T("%s = fd", what);
    return fd;
}
#define RF(what, call) RF_(what, call)

// Set-up that cannot fail where the behaviour under test is there: says where, and ends the case.
static long must_(long result, const char *call, int line) {
    if (result < 0) {
        T("line %d: %s failed: %s", line, call, ename(errno));
        _exit(99);
    }
    return result;
}
#define MUST(call) must_((long)(call), #call, __LINE__)
#define MUST0(call)                                                                                        \
    do {                                                                                                   \
        int must0_ = (call);                                                                               \
        if (must0_) errno = must0_, must_(-1, #call, __LINE__);                                            \
    } while (0)

// Event masks by name; poll's and epoll's bits are the same.
static const char *mask(uint32_t bits) {
    static __thread char text[8][128];
    static __thread unsigned turn;
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{POLLIN, "IN"},     {POLLPRI, "PRI"},       {POLLOUT, "OUT"},      {POLLRDHUP, "RDHUP"},
                 {POLLHUP, "HUP"},   {POLLERR, "ERR"},       {POLLNVAL, "NVAL"},    {POLLRDNORM, "RDNORM"},
                 {POLLRDBAND, "RDBAND"}, {POLLWRNORM, "WRNORM"}, {POLLWRBAND, "WRBAND"}};
    char *out = text[turn++ % 8];
    out[0] = 0;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!(bits & names[i].bit)) continue;
        if (out[0]) strcat(out, "|");
        strcat(out, names[i].name);
        bits &= ~names[i].bit;
    }
    if (bits) sprintf(out + strlen(out), "%s0x%x", out[0] ? "|" : "", bits);
    if (!out[0]) strcpy(out, "0");
    return out;
}

static const char *family_name(int family) {
    return family == AF_INET ? "inet" : family == AF_INET6 ? "inet6" : family == AF_UNIX ? "unix" : "?";
}
static const int FAMILIES[2] = {AF_INET, AF_INET6};
// Runs its body for IPv4 and then IPv6, with a trace line for each.
#define EACH_FAMILY(family)                                                                                \
    for (int i_##family = 0, family = 0;                                                                   \
         i_##family < 2 && (family = FAMILIES[i_##family], T("-- %s", family_name(family)), 1); i_##family++)

// ---- bytes ---------------------------------------------------------------------------------------------

static void fill(void *to, size_t length, uint32_t seed) {
    unsigned char *bytes = to;
    uint32_t x = seed * 2654435761u + 1;
    for (size_t i = 0; i < length; i++) {
        x = x * 1664525u + 1013904223u;
        bytes[i] = x >> 24;
    }
}
static uint64_t sum_more(uint64_t sum, const void *from, size_t length) {
    const unsigned char *bytes = from;
    for (size_t i = 0; i < length; i++) sum = (sum ^ bytes[i]) * 0x100000001b3ull;
    return sum;
}
#define SUM_START 0xcbf29ce484222325ull
static uint64_t sum(const void *from, size_t length) { return sum_more(SUM_START, from, length); }

// ---- time ----------------------------------------------------------------------------------------------

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}
static void msleep(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000l};
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {}
}

// ---- sockets -------------------------------------------------------------------------------------------

union address {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_storage storage;
};
static socklen_t address_length(int family) {
    return family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
}
static union address loopback(int family, int port) {
    union address a;
    memset(&a, 0, sizeof a);
    a.sa.sa_family = family;
    if (family == AF_INET6) {
        a.in6.sin6_addr = in6addr_loopback;
        a.in6.sin6_port = htons(port);
    } else {
        a.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        a.in.sin_port = htons(port);
    }
    return a;
}
static union address any_address(int family, int port) {
    union address a = loopback(family, port);
    if (family == AF_INET6)
        a.in6.sin6_addr = in6addr_any;
    else
        a.in.sin_addr.s_addr = htonl(INADDR_ANY);
    return a;
}
static int port_in(const union address *a) {
    return ntohs(a->sa.sa_family == AF_INET6 ? a->in6.sin6_port : a->in.sin_port);
}
static int port_of(int fd) {
    union address a;
    socklen_t length = sizeof a;
    MUST(getsockname(fd, &a.sa, &length));
    return port_in(&a);
}
static int peer_port_of(int fd) {
    union address a;
    socklen_t length = sizeof a;
    MUST(getpeername(fd, &a.sa, &length));
    return port_in(&a);
}
static int set_int(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value);
}
static int get_int(int fd, int level, int option) {
    int value = -12345;
    socklen_t length = sizeof value;
    if (getsockopt(fd, level, option, &value, &length) < 0) return -1;
    return value;
}
static const char *so_error(int fd) {
    int value = -1;
    socklen_t length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) < 0) return ename(errno);
    return ename(value);
}
static int tcp_socket(int family) { return MUST(socket(family, SOCK_STREAM, 0)); }
static int bind_to(int fd, int family, int port) {
    union address a = loopback(family, port);
    return bind(fd, &a.sa, address_length(family));
}
static int connect_fd(int fd, int family, int port) {
    union address a = loopback(family, port);
    return connect(fd, &a.sa, address_length(family));
}
// A listener on loopback and a port that the stack chose.
static int make_listener_n(int family, int backlog) {
    int fd = tcp_socket(family);
    MUST(bind_to(fd, family, 0));
    MUST(listen(fd, backlog));
    return fd;
}
static int make_listener(int family) { return make_listener_n(family, 128); }
// A port where connecting is refused: bound, so nobody else gets it, and not listening.
static int refused_port(int family) {
    int fd = tcp_socket(family);
    MUST(bind_to(fd, family, 0));
    return port_of(fd);
}
static int connect_to(int family, int port) {
    int fd = tcp_socket(family);
    MUST(connect_fd(fd, family, port));
    return fd;
}
// A client with a small receive buffer, set before it connects.
static int connect_with_little_room(int port) {
    int fd = tcp_socket(AF_INET);
    MUST(set_int(fd, SOL_SOCKET, SO_RCVBUF, 32768));
    MUST(connect_fd(fd, AF_INET, port));
    return fd;
}
// A connection: ends[0] is the side that connected, ends[1] the accepted one.
static void tcp_pair(int family, int ends[2]) {
    int listener = make_listener(family);
    ends[0] = connect_to(family, port_of(listener));
    ends[1] = MUST(accept(listener, NULL, NULL));
    close(listener);
}
static void nonblock(int fd) { MUST(fcntl(fd, F_SETFL, MUST(fcntl(fd, F_GETFL)) | O_NONBLOCK)); }
static void blocking(int fd) { MUST(fcntl(fd, F_SETFL, MUST(fcntl(fd, F_GETFL)) & ~O_NONBLOCK)); }

// Level-triggered state right now (or within ms): the mask, 0 for none.
static uint32_t poll1(int fd, short events, int ms) {
    struct pollfd p = {fd, events, 0};
    int n;
    do n = poll(&p, 1, ms);
    while (n < 0 && errno == EINTR);
    return n > 0 ? (uint16_t)p.revents : 0;
}
#define ALL_EVENTS (POLLIN | POLLPRI | POLLOUT | POLLRDHUP)
// Waits until every bit of want is there, then gives the whole mask of what is there.
static uint32_t wait_mask(int fd, short events, uint32_t want) {
    int64_t end = now_ms() + WAIT_MS;
    for (;;) {
        uint32_t seen = poll1(fd, events, 50);
        if ((seen & want) == want || now_ms() > end) return seen;
        if (seen) msleep(1);
    }
}
// Waits until length bytes can be read without blocking; gives what FIONREAD says then.
static int wait_bytes(int fd, int length) {
    int64_t end = now_ms() + WAIT_MS;
    for (;;) {
        int there = -1;
        MUST(ioctl(fd, FIONREAD, &there));
        if (there >= length || now_ms() > end) return there;
        msleep(1);
    }
}
// Sends all; gives the length, or -1 with errno.
static ssize_t send_all(int fd, const void *from, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t n = send(fd, (const char *)from + done, length - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            wait_mask(fd, POLLOUT, POLLOUT);
            continue;
        }
        if (n < 0) return -1;
        done += n;
    }
    return done;
}
// Receives exactly length bytes, or fewer at EOF; -1 with errno.
static ssize_t recv_all(int fd, void *to, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t n = recv(fd, (char *)to + done, length - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            wait_mask(fd, POLLIN, POLLIN);
            continue;
        }
        if (n < 0) return -1;
        if (n == 0) break;
        done += n;
    }
    return done;
}
// Reads to EOF and prints "what: N bytes, sum X, then EOF" (or the errno).
static void drain(const char *what, int fd) {
    static __thread char buffer[65536];
    uint64_t s = SUM_START;
    size_t total = 0;
    ssize_t n;
    for (;;) {
        n = recv(fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            wait_mask(fd, POLLIN, POLLIN);
            continue;
        }
        if (n <= 0) break;
        s = sum_more(s, buffer, n);
        total += n;
    }
    T("%s: %zu bytes, sum %016llx, then %s", what, total, (unsigned long long)s, n == 0 ? "EOF" : ename(errno));
}
// Reads one line's worth of exactly strlen(expected) bytes and prints them.
static void expect_text(const char *what, int fd, size_t length) {
    char text[256] = {0};
    ssize_t n = recv_all(fd, text, length < 255 ? length : 255);
    if (n < 0)
        T("%s: %s", what, ename(errno));
    else
        T("%s: \"%s\"", what, text);
}
static void send_text(int fd, const char *text) { MUST(send_all(fd, text, strlen(text))); }
// Fills a socket until it would block for good; gives how many bytes went in. What is under way makes room
// again for a moment (on a loaded machine a long one), so full means: no byte more in 400 ms.
static size_t fill_up(int fd) {
    static char block[65536];
    size_t total = 0;
    nonblock(fd);
    fill(block, sizeof block, 7);
    for (int quiet = 0; quiet < 40;) {
        ssize_t n = send(fd, block, sizeof block, MSG_NOSIGNAL);
        if (n > 0)
            total += n, quiet = 0;
        else if (n < 0 && errno == EAGAIN)
            quiet++, msleep(10);
        else
            must_(-1, "send while filling up", __LINE__);
    }
    return total;
}
// Bounds what a connection holds, so that filling it is quick and buffers do not grow meanwhile.
static void small_buffers(int sender, int receiver) {
    MUST(set_int(sender, SOL_SOCKET, SO_SNDBUF, 32768));
    MUST(set_int(receiver, SOL_SOCKET, SO_RCVBUF, 32768));
}
// From now on descriptors are below this number.
static void limit_numbers(int limit) {
    struct rlimit r;
    MUST(getrlimit(RLIMIT_NOFILE, &r));
    r.rlim_cur = limit;
    MUST(setrlimit(RLIMIT_NOFILE, &r));
}
// From now on no descriptor is left, as long as none is closed; gives the first number that there is not.
static int leave_no_number(void) {
    int top = MUST(dup(STDOUT_FILENO));
    close(top);
    limit_numbers(top);
    return top;
}
// Closes with a reset.
static void close_rst(int fd) {
    struct linger l = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    MUST(close(fd));
}

// ---- epoll ---------------------------------------------------------------------------------------------

static int ep_ctl(int ep, int op, int fd, uint32_t events, uint64_t data) {
    struct epoll_event e = {.events = events, .data.u64 = data};
    return epoll_ctl(ep, op, fd, &e);
}
#define EP_ADD(ep, fd, events, data) MUST(ep_ctl(ep, EPOLL_CTL_ADD, fd, events, data))
#define EP_MOD(ep, fd, events, data) MUST(ep_ctl(ep, EPOLL_CTL_MOD, fd, events, data))
static int by_data(const void *a, const void *b) {
    uint64_t x = ((const struct epoll_event *)a)->data.u64, y = ((const struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}
// Waits once and prints the events, ordered by their data.
static int ep_show(const char *what, int ep, int ms) {
    struct epoll_event e[64];
    int n;
    do n = epoll_wait(ep, e, 64, ms);
    while (n < 0 && errno == EINTR);
    if (n < 0) return R(what, n);
    char line[900];
    int at = snprintf(line, sizeof line, "%s: %d", what, n);
    qsort(e, n, sizeof e[0], by_data);
    for (int i = 0; i < n && at < 800; i++)
        at += snprintf(line + at, sizeof line - at, " [%llu %s]", (unsigned long long)e[i].data.u64, mask(e[i].events));
    T("%s", line);
    return n;
}
// Watches that nothing more is reported.
#define EP_QUIET(what, ep) ep_show(what, ep, QUIET_MS)

// ---- processes and threads -----------------------------------------------------------------------------

static const char *status_name(int status) {
    static __thread char text[64];
    if (WIFEXITED(status))
        snprintf(text, sizeof text, "exit %d", WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "killed by SIG%s", sigabbrev_np(WTERMSIG(status)));
    else
        snprintf(text, sizeof text, "status 0x%x", status);
    return text;
}
static pid_t must_fork(void) {
    pid_t pid = MUST(fork());
    if (pid == 0) alarm(CASE_ALARM_S);
    return pid;
}
static int wait_for(pid_t pid) {
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return status;
}
static void reap(const char *what, pid_t pid) { T("%s: %s", what, status_name(wait_for(pid))); }
// Waits until a thread (or a process' main thread) sleeps in a call (asleep at five looks in a row) or has ended.
static void wait_asleep(pid_t tid) {
    int64_t end = now_ms() + WAIT_MS;
    for (int asleep = 0; asleep < 5 && now_ms() < end; msleep(5)) {
        char path[64], text[256] = {0};
        snprintf(path, sizeof path, "/proc/%d/stat", tid);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return; // it has ended
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        char *paren = n > 0 ? strrchr(text, ')') : NULL;
        asleep = paren && paren[2] == 'S' ? asleep + 1 : 0;
    }
}
static pid_t my_tid(void) { return syscall(SYS_gettid); }
static pthread_t start_thread(void *(*f)(void *), void *argument) {
    pthread_t t;
    MUST0(pthread_create(&t, NULL, f, argument));
    return t;
}
static void join(pthread_t t) { MUST0(pthread_join(t, NULL)); }
// A thread that sends so many bytes to a thread that waits, each once it sleeps and has taken the one before.
struct one_by_one {
    int from, to, count;
    pid_t waiter;
};
static void *send_one_by_one(void *argument) {
    struct one_by_one *a = argument;
    for (int i = 0; i < a->count; i++) {
        wait_asleep(a->waiter);
        send_text(a->from, "x");
        int left;
        do msleep(1);
        while (ioctl(a->to, FIONREAD, &left) == 0 && left > 0);
    }
    return NULL;
}

// A gate between processes or threads: each gate_open lets one gate_wait through.
struct gate {
    int end[2];
};
static struct gate make_gate(void) {
    struct gate g;
    MUST(pipe2(g.end, O_CLOEXEC));
    return g;
}
static void gate_open(struct gate g) { MUST(write(g.end[1], "g", 1)); }
static void gate_wait(struct gate g) {
    char c;
    ssize_t n;
    do n = read(g.end[0], &c, 1);
    while (n < 0 && errno == EINTR);
    if (n != 1) errno = EPIPE, MUST(-1);
}
static void on_signal(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    MUST(sigaction(number, &action, NULL));
}

// ---- pair cases: two programs that meet through a directory that the runner gives -----------------------

static const char *case_dir_(void) {
    const char *dir = getenv("CASE_DIR");
    return dir ? dir : ".";
}
// Leaves a number for the other role under a name.
static void tell_number(const char *name, long number) {
    char path[512], temporary[512], text[32];
    snprintf(path, sizeof path, "%s/%s", case_dir_(), name);
    snprintf(temporary, sizeof temporary, "%s/%s.new", case_dir_(), name);
    int fd = MUST(open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    int n = snprintf(text, sizeof text, "%ld", number);
    MUST(write(fd, text, n));
    close(fd);
    MUST(rename(temporary, path));
}
// Waits for what the other role leaves under a name.
static long await_number(const char *name) {
    char path[512], text[32] = {0};
    snprintf(path, sizeof path, "%s/%s", case_dir_(), name);
    int64_t end = now_ms() + WAIT_MS;
    int fd;
    while ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0) {
        if (now_ms() > end) {
            T("waited in vain for the other role's \"%s\"", name);
            _exit(97);
        }
        msleep(1);
    }
    MUST(read(fd, text, sizeof text - 1));
    close(fd);
    return atol(text);
}
static void tell(const char *name) { tell_number(name, 1); }
static void await(const char *name) { await_number(name); }

// A port outside the ephemeral range that the runner gives to this run alone (8 in a row).
static int private_port(void) {
    const char *port = getenv("CASE_PORT");
    return port ? atoi(port) : 19000;
}

// A listener on one of those ports: for cases that look at the port once it is free again, when an ephemeral
// port could be somebody else's by then.
static int private_listener(int family, int which) {
    int fd = tcp_socket(family);
    MUST(set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1));
    MUST(bind_to(fd, family, private_port() + which));
    MUST(listen(fd, 128));
    return fd;
}

static void case_start(void) { alarm(CASE_ALARM_S); }
static bool is_server(int argc, char **argv) {
    case_start();
    if (argc > 1 && !strcmp(argv[1], "server")) return true;
    if (argc > 1 && !strcmp(argv[1], "client")) return false;
    fprintf(stderr, "usage: %s server|client\n", argv[0]);
    exit(2);
}
// A pair case has server_role(listener) and client_role(port) and ends with PAIR_MAIN(family).
#define PAIR_MAIN(family)                                                                                  \
    int main(int argc, char **argv) {                                                                      \
        if (is_server(argc, argv)) {                                                                       \
            int listener = make_listener(family);                                                          \
            tell_number("port", port_of(listener));                                                        \
            server_role(listener);                                                                         \
        } else {                                                                                           \
            client_role(await_number("port"));                                                             \
        }                                                                                                  \
        return 0;                                                                                          \
    }


// Connects until it is refused: the end of another process's listener is prompt, but its parent may reap it first.
static inline int refused_soon(int family, int port) {
    int result = 0;
    for (int i = 0; i < WAIT_MS / 5; i++) {
        int fd = tcp_socket(family);
        result = connect_fd(fd, family, port);
        int why = errno;
        close(fd);
        errno = why;
        if (result < 0 && why == ECONNREFUSED) break;
        usleep(5000);
    }
    return result;
}

#endif
