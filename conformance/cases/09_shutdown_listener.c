// shape: self
// shutdown of a listener ends listening: accept gives EINVAL, also one that is blocked; it can listen again.
#include "case.h"

static int listener;
static int result, error;
static pid_t tid;
static void *acceptor(void *argument) {
    (void)argument;
    __atomic_store_n(&tid, my_tid(), __ATOMIC_SEQ_CST);
    result = accept(listener, NULL, NULL);
    error = errno;
    return NULL;
}

int main(void) {
    case_start();
    listener = private_listener(AF_INET, 0);
    int port = port_of(listener);
    pthread_t t = start_thread(acceptor, NULL);
    while (!__atomic_load_n(&tid, __ATOMIC_SEQ_CST)) msleep(1);
    wait_asleep(tid);
    R("shutdown", shutdown(listener, SHUT_RD));
    join(t);
    errno = error;
    R("blocked accept", result);
    R("accept", accept(listener, NULL, NULL));
    int fd = tcp_socket(AF_INET);
    R("connect", connect_fd(fd, AF_INET, port));
    T("SO_ACCEPTCONN %d", get_int(listener, SOL_SOCKET, SO_ACCEPTCONN));
    R("listen again", listen(listener, 5));
    R("connect", connect_fd(fd, AF_INET, port_of(listener)));
    RF("accept", accept(listener, NULL, NULL));
    return 0;
}
