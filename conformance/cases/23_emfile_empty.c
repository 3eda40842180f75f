// shape: self
// No descriptor left and nobody to accept: EMFILE at once, whether the listener blocks or not, and also on what is no listener.
#include "case.h"

int main(void) {
    case_start();
    int listener = make_listener(AF_INET), datagrams = socket(AF_INET, SOCK_DGRAM, 0), stream = socket(AF_INET, SOCK_STREAM, 0);
    int top = leave_no_number();
    R("accept, blocking", accept(listener, NULL, NULL));
    R("accept4", accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    R("accept4, wrong flags", accept4(listener, NULL, NULL, 0x10));
    nonblock(listener);
    R("accept, nonblocking", accept(listener, NULL, NULL));
    R("accept, datagrams", accept(datagrams, NULL, NULL));
    R("accept, no listener", accept(stream, NULL, NULL));
    T("not ready: %s", mask(poll1(listener, POLLIN, 0)));
    limit_numbers(top + 1);
    R("accept with one number left", accept(listener, NULL, NULL));
    R("and again", accept(listener, NULL, NULL));
    R("accept, datagrams", accept(datagrams, NULL, NULL));
    R("accept, no listener", accept(stream, NULL, NULL));
    int client = connect_to(AF_INET, port_of(listener)); // takes it
    wait_mask(listener, POLLIN, POLLIN);
    R("accept with a connection", accept(listener, NULL, NULL));
    close(stream);
    int taken = RF("accept with a number for it", accept(listener, NULL, NULL));
    R("accept, nonblocking", accept(listener, NULL, NULL));
    close(taken), close(client);
    return 0;
}
