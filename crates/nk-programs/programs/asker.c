// One of many guests: a request at once, and another when it is told to.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void ask(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        fail("connect");
    const char *request = "GET / HTTP/1.0\r\n\r\n";
    if (send(fd, request, strlen(request), 0) != (ssize_t)strlen(request))
        fail("send");
    char answer[1024] = "";
    size_t have = 0;
    for (ssize_t got; have < sizeof answer - 1 && (got = recv(fd, answer + have, sizeof answer - 1 - have, 0)) != 0; have += got)
        if (got < 0)
            fail("recv");
    if (strstr(answer, " 200 OK") == NULL || strstr(answer, "0123456789abcdef") == NULL) {
        fprintf(stderr, "an odd answer: %s\n", answer);
        exit(1);
    }
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    char line[16];
    ask(atoi(argv[1]));
    puts("first");
    fflush(stdout);
    if (read(0, line, sizeof line) <= 0)
        return 3;
    ask(atoi(argv[1]));
    puts("second");
    fflush(stdout);
    return read(0, line, sizeof line) < 0;
}
