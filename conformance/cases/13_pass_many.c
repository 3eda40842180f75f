// shape: self
// Several descriptors in one message, kinds mixed; MSG_CMSG_CLOEXEC; one socket sent twice; MSG_PEEK.
#include "case.h"
#include "scm.h"

int main(void) {
    case_start();
    int a[2], b[2], channel[2], pipes[2], got[8];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
    MUST(pipe(pipes));
    tcp_pair(AF_INET, a);
    tcp_pair(AF_INET6, b);
    int sent[5] = {a[1], pipes[1], b[1], a[1], MUST(open("/dev/null", O_RDONLY))};
    scm_send_n(channel[0], sent, 5);
    T("received %d", scm_receive_n(channel[1], got, 8, MSG_CMSG_CLOEXEC));
    for (int i = 0; i < 5; i++) T("cloexec %d", fcntl(got[i], F_GETFD));
    MUST(write(got[1], "pipe", 4));
    send_text(got[0], "one");
    send_text(got[3], "two");
    expect_text("a", a[0], 6);
    send_text(b[0], "six");
    expect_text("b", got[2], 3);
    close(a[1]);
    close(got[0]);
    T("one copy left: %s", mask(poll1(a[0], POLLIN | POLLRDHUP, QUIET_MS)));
    close(got[3]);
    drain("a", a[0]);

    scm_send(channel[0], b[1]);
    T("peeked %d", scm_receive_n(channel[1], got, 1, MSG_PEEK));
    T("received %d", scm_receive_n(channel[1], got + 1, 1, 0));
    send_text(got[0], "peek");
    send_text(got[1], "recv");
    expect_text("b", b[0], 8);
    return 0;
}
