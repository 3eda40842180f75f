// shape: self
// stdio over a socket: fdopen, fprintf, fgets, fflush, setvbuf, dup for the other direction, fclose.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    char line[100];
    tcp_pair(AF_INET, ends);
    pid_t child = must_fork();
    if (child == 0) {
        close(ends[0]);
        FILE *in = fdopen(ends[1], "r"), *out = fdopen(dup(ends[1]), "w");
        while (fgets(line, sizeof line, in)) {
            fprintf(out, "you said: %s", line);
            fflush(out);
        }
        T("server: eof %d error %d", feof(in), ferror(in));
        fputs("goodbye\n", out);
        int closed = fclose(out);
        _exit(closed | fclose(in));
    }
    close(ends[1]);
    FILE *f = fdopen(ends[0], "r+");
    setvbuf(f, NULL, _IOLBF, 0);
    for (int i = 0; i < 3; i++) {
        fprintf(f, "line %d\n", i);
        fflush(f);
        T("%s", fgets(line, sizeof line, f) ? strtok(line, "\n") : "(null)");
    }
    shutdown(fileno(f), SHUT_WR);
    T("%s", fgets(line, sizeof line, f) ? strtok(line, "\n") : "(null)");
    T("%s", fgets(line, sizeof line, f) ? "more" : "eof");
    reap("server", child);
    T("fclose %d", fclose(f));
    R("the fd is closed", fcntl(ends[0], F_GETFD));
    return 0;
}
