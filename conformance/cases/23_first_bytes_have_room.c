// shape: pair
// However much a server has sent on connections that nobody reads: the first bytes on the next have room, at once.
#include "case.h"

enum { SLOW = 24 };
static void server_role(int listener) {
    static char block[65536];
    int slow[SLOW], taken = 0;
    for (int i = 0; i < SLOW; i++) {
        slow[i] = MUST(accept(listener, NULL, NULL));
        MUST(set_int(slow[i], SOL_SOCKET, SO_SNDBUF, 32768));
        nonblock(slow[i]);
        taken += send(slow[i], block, 100, 0) == 100;
        while (send(slow[i], block, sizeof block, 0) > 0) {}
    }
    T("first bytes taken: %d of %d", taken, SLOW);
    tell("done");
}
static void client_role(int port) {
    int slow[SLOW];
    for (int i = 0; i < SLOW; i++) slow[i] = connect_with_little_room(port);
    await("done");
    T("connected: %d", slow[SLOW - 1] >= 0);
}
PAIR_MAIN(AF_INET)
