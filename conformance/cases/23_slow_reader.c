// shape: pair
// Some clients never read and stand full; the others are served as if they were not there; then the slow ones get it all.
#include "case.h"

// More than a connection holds between two guests: a ring of 2 MiB at each, and what their stacks hold.
enum { SLOW = 5, BYTES = 6 << 20 };
static void server_role(int listener) {
    static char block[BYTES];
    fill(block, sizeof block, 91);
    int slow[SLOW];
    size_t done[SLOW] = {0};
    for (int i = 0; i < SLOW; i++) {
        slow[i] = MUST(accept(listener, NULL, NULL));
        MUST(set_int(slow[i], SOL_SOCKET, SO_SNDBUF, 32768));
        nonblock(slow[i]);
    }
    // Until nobody takes more, not even after a while.
    for (int quiet = 0; quiet < 5; quiet++, msleep(10))
        for (int i = 0; i < SLOW; i++) {
            ssize_t n;
            while (done[i] < BYTES && (n = send(slow[i], block + done[i], BYTES - done[i], 0)) > 0) done[i] += n, quiet = 0;
        }
    for (int i = 0; i < SLOW; i++) T("stands full: %d", done[i] < BYTES);
    for (int i = 0; i < 50; i++) {
        int fd = MUST(accept(listener, NULL, NULL));
        char text[16];
        ssize_t n = recv(fd, text, sizeof text, 0);
        if (n > 0) send_all(fd, text, n);
        close(fd);
    }
    for (int i = 0; i < SLOW; i++) {
        if (i == 0) tell("read-now");
        R("the rest", send_all(slow[i], block + done[i], BYTES - done[i]) == (ssize_t)(BYTES - done[i]) ? 0 : -1);
        close(slow[i]);
    }
}
static void client_role(int port) {
    int slow[SLOW];
    for (int i = 0; i < SLOW; i++) slow[i] = connect_with_little_room(port);
    for (int i = 0; i < 50; i++) {
        int fd = connect_to(AF_INET, port);
        send_text(fd, "quick");
        expect_text("quick", fd, 5);
        drain("quick", fd);
        close(fd);
    }
    await("read-now");
    for (int i = 0; i < SLOW; i++) drain("slow", slow[i]);
}
PAIR_MAIN(AF_INET)
