// shape: self
// SO_REUSEPORT: several listeners on one port, all of them get connections; not without the option on each.
#include "case.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int fds[3], port = 0;
        for (int i = 0; i < 3; i++) {
            fds[i] = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
            MUST(set_int(fds[i], SOL_SOCKET, SO_REUSEPORT, 1));
            R("bind", bind_to(fds[i], family, port));
            R("listen", listen(fds[i], 128));
            port = port_of(fds[i]);
        }
        int without = tcp_socket(family);
        R("bind without it", bind_to(without, family, port));
        close(without);
        enum { COUNT = 90 };
        int clients[COUNT], taken[3] = {0};
        for (int i = 0; i < COUNT; i++) clients[i] = connect_to(family, port);
        int64_t end = now_ms() + WAIT_MS;
        while (taken[0] + taken[1] + taken[2] < COUNT && now_ms() < end)
            for (int i = 0; i < 3; i++) {
                int fd = accept(fds[i], NULL, NULL);
                if (fd >= 0) taken[i]++, close(fd);
            }
        T("taken %d, each has some: %d", taken[0] + taken[1] + taken[2], taken[0] > 5 && taken[1] > 5 && taken[2] > 5);
        for (int i = 0; i < COUNT; i++) close(clients[i]);
        close(fds[0]);
        close(fds[1]);
        int fd = connect_to(family, port);
        T("the one that is left takes it: %s", mask(wait_mask(fds[2], POLLIN, POLLIN)));
        close(fd);
        close(fds[2]);
    }
    return 0;
}
