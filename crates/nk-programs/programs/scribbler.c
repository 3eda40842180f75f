/* A hostile guest: `scribbler PORT SECONDS`. It serves itself connections, and sends itself bursts of datagrams, over its
 * NK device and, meanwhile, a thread overwrites random words of the device, which is mapped into this very process, and
 * forges headers of datagrams in the chunks from which those are sent, several in each. It uses nothing but what every
 * guest has. Its own connections break in any way whatsoever; a child that dies or hangs is replaced. Prints how many
 * words it wrote in all, so that a run that found nothing to write to is seen.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile uint64_t *written;
static int port;

struct range { uint64_t *start; size_t words; };
static struct range ranges[64];
static int range_count;
/* Where the chunks begin, as the device's header says: they are the last of it. */
static char *chunks;
#define CHUNK 32768

/* Shared, writable mappings of memfds: the device. */
static void find_device(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], flags[5];
    unsigned long from, to;
    while (maps && range_count < 64 && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s", &from, &to, flags) != 3) continue;
        if (!strstr(line, "memfd:") || flags[1] != 'w' || flags[3] != 's') continue;
        ranges[range_count].start = (uint64_t *)from;
        if (!memcmp((char *)from, "NETKERNL", 8)) chunks = (char *)to - (size_t)((uint32_t *)from)[7] * CHUNK;
        ranges[range_count++].words = (to - from) / 8;
    }
    if (maps) fclose(maps);
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* A header's length and flags, or all of it, in one of the chunks that are used most: a length that reaches into the next one or past the chunk, or
 * any words. */
static void forge(uint64_t *state) {
    volatile uint64_t *at = (uint64_t *)(chunks + next(state) % 64 * CHUNK + next(state) % 64 * 64);
    uint64_t length = next(state) % 4 ? next(state) % 400 : next(state) % 70000;
    *at = length | (next(state) & 0x3ff) << 32;
    for (int i = 1; i < 16 && next(state) % 4 == 0; i++) at[i] = next(state);
}

static void *scribble(void *seed) {
    uint64_t state = (uint64_t)(uintptr_t)seed * 0x9e3779b97f4a7c15u + 1;
    for (;;) {
        for (int i = 0; i < 64 && range_count; i++) {
            if (i % 2) {
                forge(&state);
                __atomic_fetch_add(written, 1, __ATOMIC_RELAXED);
                continue;
            }
            struct range *range = &ranges[next(&state) % (uint64_t)range_count];
            /* Half of the writes go to the first MiB: header, rings and cells, not payload. */
            size_t words = range->words;
            if ((next(&state) & 1) && words > 131072) words = 131072;
            volatile uint64_t *at = range->start + next(&state) % words;
            switch (next(&state) % 5) {
                case 0: *at = next(&state); break;
                case 1: *at = ~0ull; break;
                case 2: *at = 0; break;
                case 3: *at ^= 1ull << (next(&state) % 64); break;
                default: *at += next(&state) % 3; break;
            }
            __atomic_fetch_add(written, 1, __ATOMIC_RELAXED);
        }
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void *echo(void *listener) {
    char buffer[70000];
    for (;;) {
        int fd = accept(*(int *)listener, NULL, NULL);
        if (fd < 0) continue;
        ssize_t n;
        while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0 && send(fd, buffer, (size_t)n, MSG_NOSIGNAL) > 0) {}
        close(fd);
    }
    return NULL;
}

/* Bursts of datagrams to itself, 168 bytes and more each with its header. */
static void *bursts(void *nothing) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    char buffer[256] = "";
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || getsockname(fd, (struct sockaddr *)&at, &length)) return nothing;
    if (connect(fd, (struct sockaddr *)&at, sizeof at)) return nothing;
    for (;;) {
        for (int i = 0; i < 200; i++) send(fd, buffer, 40 + (size_t)i, MSG_DONTWAIT);
        while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0) {}
    }
}

static void traffic(unsigned seed) {
    pthread_t thread;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    static char buffer[70000];
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) _exit(3);
    find_device();
    if (!range_count || !chunks) _exit(4);
    pthread_create(&thread, NULL, bursts, NULL);
    pthread_create(&thread, NULL, echo, &listener);
    pthread_create(&thread, NULL, echo, &listener);
    for (long i = 0;; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0) {
            for (int k = 0; k < 20; k++) {
                if (send(fd, buffer, sizeof buffer, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) break;
                if (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) == 0) break;
            }
        }
        if (fd >= 0) close(fd);
        /* Sane traffic first, so that there is something to break. */
        if (i == 20) pthread_create(&thread, NULL, scribble, (void *)(uintptr_t)(seed + 1));
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    port = atoi(argv[1]);
    time_t end = time(NULL) + atoi(argv[2]);
    written = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int children = 0, refused = 0;
    while (time(NULL) < end) {
        pid_t pid = fork();
        if (pid == 0) {
            alarm(2); /* Hanging is this guest's own affair. */
            traffic((unsigned)getpid());
        }
        if (pid < 0) { refused++; usleep(50000); continue; }
        children++;
        int status = 0;
        for (int i = 0; i < 300 && waitpid(pid, &status, WNOHANG) == 0; i++) usleep(10000);
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
    }
    printf("%llu words by %d children (%d forks refused)\n", (unsigned long long)*written, children, refused);
    fflush(stdout);
    _exit(*written ? 0 : 1);
}
