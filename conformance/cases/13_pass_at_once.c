// shape: self
// A server that passes each connection on the moment it has it, as node's cluster does: every one arrives, and is served.
#include "case.h"
#include "scm.h"

#define CONNECTIONS 400
#define AT_ONCE 8

static void worker(int channel) {
    int served = 0;
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = scm_receive(channel);
        char c;
        served += recv_all(fd, &c, 1) == 1 && send_all(fd, &c, 1) == 1;
        close(fd);
    }
    _exit(served == CONNECTIONS ? 0 : 1);
}

static void client(int port) {
    int answered = 0;
    for (int i = 0; i < CONNECTIONS; i += AT_ONCE) {
        int fds[AT_ONCE];
        for (int j = 0; j < AT_ONCE; j++) {
            fds[j] = connect_to(AF_INET, port);
            send_text(fds[j], "x");
        }
        for (int j = 0; j < AT_ONCE; j++) {
            char c;
            answered += recv_all(fds[j], &c, 1) == 1;
            close(fds[j]);
        }
    }
    _exit(answered == CONNECTIONS ? 0 : 1);
}

int main(void) {
    case_start();
    int channel[2], listener = make_listener(AF_INET), sent = 0;
    MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel));
    pid_t serving = must_fork();
    if (serving == 0) {
        close(channel[0]);
        close(listener);
        worker(channel[1]);
    }
    pid_t asking = must_fork();
    if (asking == 0) {
        close(channel[0]);
        close(channel[1]);
        client(port_of(listener));
    }
    nonblock(listener);
    int64_t end = now_ms() + WAIT_MS;
    while (sent < CONNECTIONS && now_ms() < end) {
        // Not asked for news first: the connection is found the moment it is there.
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        scm_send(channel[0], fd);
        close(fd);
        sent++;
    }
    reap("client", asking);
    reap("worker", serving);
    T("sent %d", sent);
    return 0;
}
