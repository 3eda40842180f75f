/* Opens and closes many connections over loopback, within one process tree:
 * `churn PORT SERVERS CLIENTS EACH [tolerant]`.
 *
 * SERVERS processes accept on one listener. CLIENTS processes make EACH connections, one after the other, and end;
 * each is replaced until the parent is told to stop, so that processes come and go, too. Every connection carries
 * 16 bytes there and back. Four ways to close take turns: the client first, the server first, a reset, and a half
 * close. On stdin, "run N" makes N connections in all and answers "done N"; end of file ends everything.
 *
 * "tolerant": somebody kills the children at random. What fails is tried again with a new process. SIGUSR1 ends the
 * present run early: the clients that are at work end, and no more are started.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 16, SERVER_CLOSES = 1 };

static volatile sig_atomic_t enough;

static void stop(int signal) {
    (void)signal;
    enough = 1;
}

static void fail(const char *what) {
    fprintf(stderr, "churn %d: %s: %s\n", getpid(), what, strerror(errno));
    _exit(1);
}

static void must(int fd, char *buffer, int receive) {
    for (int at = 0; at < SIZE;) {
        ssize_t n = receive ? recv(fd, buffer + at, SIZE - at, 0) : send(fd, buffer + at, SIZE - at, MSG_NOSIGNAL);
        if (n <= 0) {
            if (n == 0) errno = 0;
            fail(receive ? "recv" : "send");
        }
        at += n;
    }
}

static void serve(int listener) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        char buffer[SIZE];
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) {
            if (errno == ECONNABORTED || errno == EINTR) continue;
            fail("accept");
        }
        must(fd, buffer, 1);
        must(fd, buffer, 0);
        /* The first byte says who closes first. */
        if (buffer[0] != SERVER_CLOSES) {
            char end;
            ssize_t n = recv(fd, &end, 1, 0);
            if (n > 0 || (n < 0 && errno != ECONNRESET)) fail("the client's end");
        }
        close(fd);
    }
}

static void use(const struct sockaddr_in *to, long count, unsigned seed) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (long i = 0; i < count; i++) {
        char out[SIZE], back[SIZE], end;
        int way = (int)(i % 4);
        for (int k = 0; k < SIZE; k++) out[k] = (char)(seed + i * 7 + k);
        out[0] = (char)way;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0) fail("socket");
        /* So many connections leave so many ports in TIME_WAIT that a connect may find none for a moment: natively, too. */
        int tries = 0;
        while (connect(fd, (const struct sockaddr *)to, sizeof *to) < 0) {
            if (errno != EADDRNOTAVAIL || ++tries > 500) fail("connect");
            usleep(10000);
        }
        must(fd, out, 0);
        must(fd, back, 1);
        if (memcmp(out, back, SIZE)) { errno = 0; fail("other bytes came back"); }
        if (way == SERVER_CLOSES && recv(fd, &end, 1, 0) != 0) fail("the server's end");
        if (way == 2) {
            struct linger reset = {1, 0};
            if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset)) fail("SO_LINGER");
        }
        if (way == 3) {
            if (shutdown(fd, SHUT_WR)) fail("shutdown");
            if (recv(fd, &end, 1, 0) != 0) fail("the answer to a half close");
        }
        if (close(fd)) fail("close");
    }
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) return 2;
    int tolerant = argc == 6;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    int servers = atoi(argv[2]), clients = atoi(argv[3]), one = 1;
    long each = atol(argv[4]), wanted;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 512)) fail("listen");
    pid_t server[64] = {0};
    if (servers > 64) return 2;
    for (int i = 0; i < servers; i++)
        if ((server[i] = fork()) == 0) serve(listener);
    signal(SIGUSR1, stop);
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin) && sscanf(line, "run %ld", &wanted) == 1) {
        long given = 0;
        int running = 0;
        unsigned seed = 0;
        while (given < wanted || running) {
            if (enough) given = wanted;
            if (given < wanted && running < clients) {
                long count = wanted - given < each ? wanted - given : each;
                pid_t pid = fork();
                if (pid < 0 && tolerant) { usleep(10000); continue; }
                if (pid < 0) fail("fork");
                if (pid == 0) use(&at, count, seed);
                seed += 31;
                given += count;
                running++;
                continue;
            }
            int status, was_server = 0;
            pid_t pid = wait(&status);
            if (pid < 0) fail("wait");
            if (status && !tolerant) { errno = 0; fail("a server or client failed"); }
            for (int i = 0; i < servers; i++)
                if (server[i] == pid) {
                    was_server = 1;
                    if ((server[i] = fork()) == 0) serve(listener);
                }
            if (!was_server) running--;
        }
        printf("done %ld\n", wanted);
        fflush(stdout);
    }
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    return 0;
}
