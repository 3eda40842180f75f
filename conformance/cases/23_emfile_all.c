// shape: self
// With few descriptors left every one of them can be a socket, made or accepted, and a freed one again.
#include "case.h"

#define LIMIT 64

// Sockets until there is no number left; gives the errno.
static int fill_numbers(int *made) {
    for (*made = 0; socket(AF_INET, SOCK_STREAM, 0) >= 0; ++*made) {}
    return errno;
}

int main(void) {
    case_start();
    int before = 0, made;
    limit_numbers(LIMIT);
    for (int fd = 0; fd < LIMIT; fd++) before += fcntl(fd, F_GETFD) >= 0;
    int why = fill_numbers(&made);
    T("%d sockets of %d, then %s", made + before, LIMIT, ename(why));
    for (int i = 0; i < 3; i++) {
        close(30 + i);
        RF("socket in its place", socket(AF_INET, SOCK_DGRAM, 0));
        R("socket", socket(AF_INET, SOCK_STREAM, 0));
    }
    close(40), close(41), close(42), close(43);
    int listener = make_listener(AF_INET), client = connect_to(AF_INET, port_of(listener));
    int taken = RF("accept", accept(listener, NULL, NULL));
    RF("dup", dup(taken));
    R("dup", dup(taken));
    R("socket", socket(AF_INET, SOCK_STREAM, 0));
    send_text(client, "full");
    expect_text("server", taken, 4);
    for (int fd = 3; fd < LIMIT; fd++) close(fd);
    why = fill_numbers(&made);
    T("once more: %d, then %s", made, ename(why));
    return 0;
}
