// shape: self
// A running program puts a socket onto its standard descriptors and back, and uses the C library's streams (bash's /dev/tcp):
// what stands unflushed in a stream goes where its descriptor is when it is flushed.
#include "case.h"

static void speak(int connection, int pipe_end) {
    char line[100];
    int in = dup(0), out = dup(1);
    // Onto a pipe first, so that nothing goes to the trace.
    dup2(pipe_end, 1);
    setvbuf(stdout, NULL, _IOFBF, 4096);
    printf("printed before, ");
    dup2(connection, 1);
    printf("printed on it, fileno %d\n", fileno(stdout));
    fflush(stdout);
    for (int i = 0; i < 3; i++) {
        printf("left behind %d, ", i);
        dup2(pipe_end, 1);
        printf("pipe\n");
        fflush(stdout);
        dup2(connection, 1);
        printf("again %d\n", i);
        fflush(stdout);
    }
    setvbuf(stdout, NULL, _IOLBF, 4096);
    dup2(pipe_end, 1);
    dup2(connection, 1);
    printf("by line\n");
    // As some servers do: the lowest free number.
    close(0);
    if (dup(connection) != 0) _exit(1);
    while (fgets(line, sizeof line, stdin)) printf("heard %s", line);
    clearerr(stdin);
    dup2(connection, 2);
    fprintf(stderr, "to stderr\n");
    close(1);
    close(2);
    dup2(in, 0);
    dup2(pipe_end, 1);
    puts("closed and again the pipe");
    fflush(stdout);
    setvbuf(stdout, NULL, _IONBF, 0);
    dup2(connection, 1);
    printf("a prompt without a line's end>");
    setvbuf(stdin, NULL, _IONBF, 0);
    if (!freopen("/dev/null", "w", stdout)) _exit(2);
    printf("nowhere");
    fflush(stdout);
    FILE *own = fdopen(dup(connection), "w");
    fprintf(own, "\nby a stream of its own\n");
    if (!(own = freopen("/dev/null", "w", own))) _exit(3);
    fprintf(own, "nowhere");
    fclose(own);
    dup2(out, 1);
    _exit(0);
}

int main(void) {
    case_start();
    int ends[2], through[2];
    tcp_pair(AF_INET, ends);
    MUST(pipe(through));
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        close(through[0]);
        speak(ends[1], through[1]);
    }
    close(ends[1]);
    close(through[1]);
    send_text(ends[0], "one\ntwo\n");
    MUST(shutdown(ends[0], SHUT_WR));
    reap("child", child);
    for (int i = 0; i < 2; i++) {
        char text[1024] = "";
        int n = 0, r;
        while ((r = read(i ? through[0] : ends[0], text + n, sizeof text - 1 - n)) > 0) n += r;
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) T("%s: %s", i ? "pipe" : "socket", line);
    }
    return 0;
}
