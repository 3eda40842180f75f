// shape: self
// A send whose buffer ends in a page that is not there: what could be sent is sent, and is intact.
#include "case.h"

int main(void) {
    case_start();
    int ends[2];
    long page = sysconf(_SC_PAGESIZE);
    char *map = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(map, 2 * page, 4);
    mprotect(map + 2 * page, page, PROT_NONE);
    tcp_pair(AF_INET, ends);
    ssize_t n = send(ends[0], map, 2 * page + 10, MSG_NOSIGNAL);
    T("all before the gap or EFAULT: %d", n < 0 ? errno == EFAULT : n > 0 && n <= 2 * page);
    size_t sent = n > 0 ? n : 0;
    send_text(ends[0], "|");
    MUST(shutdown(ends[0], SHUT_WR));
    char *back = malloc(sent + 10);
    ssize_t got = recv_all(ends[1], back, sent + 10);
    T("as much as it said: %d, the same: %d, then %c", got == (ssize_t)sent + 1, !memcmp(back, map, sent), back[sent]);
    return 0;
}
