// shape: self
// Eight threads accept and serve, four threads connect: each of 200 connections is answered once.
#include "case.h"

static int listener, port, answered;
static void *server(void *argument) {
    (void)argument;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) return NULL;
        char text[8];
        if (recv_all(fd, text, 8) == 8) send_all(fd, text, 8);
        close(fd);
    }
}
static void *client(void *argument) {
    for (long i = 0; i < 50; i++) {
        int fd = tcp_socket(AF_INET);
        MUST(connect_fd(fd, AF_INET, port));
        long out = (long)argument * 1000 + i, in = 0;
        MUST(send_all(fd, &out, 8));
        char c;
        if (recv_all(fd, &in, 8) == 8 && in == out && recv(fd, &c, 1, 0) == 0)
            __atomic_add_fetch(&answered, 1, __ATOMIC_SEQ_CST);
        close(fd);
    }
    return NULL;
}

int main(void) {
    case_start();
    listener = make_listener(AF_INET);
    port = port_of(listener);
    pthread_t servers[8], clients[4];
    for (int i = 0; i < 8; i++) servers[i] = start_thread(server, NULL);
    for (long i = 0; i < 4; i++) clients[i] = start_thread(client, (void *)i);
    for (int i = 0; i < 4; i++) join(clients[i]);
    T("answered %d", answered);
    R("shutdown", shutdown(listener, SHUT_RDWR)); // wakes all eight
    for (int i = 0; i < 8; i++) join(servers[i]);
    T("all ended");
    return 0;
}
