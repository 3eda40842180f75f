// shape: self
// A socket that is passed is the same file to who receives it: fstat tells one number. (A login process tells it along, and it is compared.)
#include "case.h"
#include "scm.h"

static ino_t number(int fd) {
    struct stat s;
    MUST(fstat(fd, &s));
    return s.st_ino;
}

int main(void) {
    case_start();
    int ends[2], channel[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
    pid_t child = must_fork();
    if (child == 0) {
        close(channel[0]);
        for (int i = 0; i < 3; i++) {
            ino_t told;
            int fd = scm_receive(channel[1]);
            MUST(read(channel[1], &told, sizeof told));
            T("%d: the number that was told: %d", i, number(fd) == told);
        }
        _exit(0);
    }
    close(channel[1]);
    tcp_pair(AF_INET, ends);
    int sent[] = {ends[0], ends[1], MUST(socket(AF_INET, SOCK_DGRAM, 0))};
    for (int i = 0; i < 3; i++) {
        ino_t before = number(sent[i]);
        scm_send(channel[0], sent[i]);
        MUST(write(channel[0], &before, sizeof before));
    }
    reap("child", child);
    T("still the same, each another: %d", number(sent[0]) == number(ends[0]) && number(sent[0]) != number(sent[1]) && number(sent[1]) != number(sent[2]));
    return 0;
}
