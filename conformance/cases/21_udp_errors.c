// shape: self
// What is refused at once, with the errno for it.
#include "udp.h"

static char big[70000];

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int fd = udp_socket(family), bound = udp_bound(family);
        int port = port_of(bound);
        union address a = loopback(family, port);
        socklen_t length = address_length(family);
        R("send without a destination", send(fd, "x", 1, 0));
        R("write without a destination", write(fd, "x", 1));
        R("to port 0", udp_to(fd, family, 0, "x", 1));
        R("65536 bytes", udp_to(fd, family, port, big, 65536));
        R("70000 bytes, no destination", send(fd, big, 70000, 0));
        R("a short address", sendto(fd, "x", 1, 0, &a.sa, 8));
        R("an address of length 1", sendto(fd, "x", 1, 0, &a.sa, 1));
        R("an address too long", sendto(fd, "x", 1, 0, &a.sa, 4000));
        a.sa.sa_family = AF_UNIX;
        R("an address of another family", sendto(fd, "x", 1, 0, &a.sa, length));
        R("connect to another family", connect(fd, &a.sa, length));
        R("bind to another family", bind(fd, &a.sa, length));
        a.sa.sa_family = family;
        R("connect to a short address", connect(fd, &a.sa, 4));
        if (R("MSG_OOB", sendto(fd, "x", 1, MSG_OOB, &a.sa, length)) > 0) udp_expect("which IPv6 does not look at", bound);
        R("listen", listen(bound, 5));
        R("accept", accept(bound, NULL, NULL));
        R("getpeername", getpeername(bound, &a.sa, &length));
        R("bind again", bind_to(bound, family, 0));
        R("recv with nothing there", recv(bound, big, 10, MSG_DONTWAIT));
        R("error queue", recv(bound, big, 10, MSG_ERRQUEUE | MSG_DONTWAIT));
        R("SO_ERROR", get_int(bound, SOL_SOCKET, SO_ERROR));
        R("TCP_NODELAY", set_int(bound, IPPROTO_TCP, TCP_NODELAY, 1));
        close(fd);
        close(bound);
    }
    int fd = udp_socket(AF_INET);
    R("AF_UNSPEC as an address", ({
          union address a = loopback(AF_INET, 9);
          a.sa.sa_family = AF_UNSPEC;
          sendto(fd, "x", 1, 0, &a.sa, sizeof a.in);
      }));
    union address everybody = loopback(AF_INET, 9);
    everybody.in.sin_addr.s_addr = INADDR_BROADCAST;
    close(fd);
    fd = udp_socket(AF_INET);
    long r = sendto(fd, "x", 1, 0, &everybody.sa, sizeof everybody.in);
    T("broadcast without SO_BROADCAST fails: %d", r < 0);
    close(fd);
    fd = udp_bound(AF_INET);
    r = sendto(fd, "x", 1, 0, &everybody.sa, sizeof everybody.in);
    R("the same from a bound socket", r);
    R("other protocols", socket(AF_INET, SOCK_DGRAM, IPPROTO_TCP));
    int type = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_UDP));
    T("type %d domain %d protocol %d", get_int(type, SOL_SOCKET, SO_TYPE), get_int(type, SOL_SOCKET, SO_DOMAIN),
      get_int(type, SOL_SOCKET, SO_PROTOCOL));
    R("does not block", recv(type, big, 1, 0));
    return 0;
}
