// shape: self
// What options do and not only that they read back: TCP_INFO's state, congestion controls, buffers, segments, CORK, DEFER_ACCEPT.
#include "case.h"

static int state(int fd) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0) return -1;
    return info.tcpi_state;
}

static void info(int family) {
    int ends[2], fresh = tcp_socket(family), listener = make_listener(family);
    tcp_pair(family, ends);
    T("states: fresh %d, listener %d, connected %d %d", state(fresh), state(listener), state(ends[0]), state(ends[1]));
    send_text(ends[0], "0123456789");
    wait_bytes(ends[1], 10);
    struct tcp_info i = {0};
    socklen_t length = sizeof i;
    R("TCP_INFO", getsockopt(ends[0], IPPROTO_TCP, TCP_INFO, &i, &length));
    T("as long as asked for %d, rtt %d, mss %d, cwnd %d", length == sizeof i, i.tcpi_rtt > 0, i.tcpi_snd_mss > 500, i.tcpi_snd_cwnd > 0);
    length = 1;
    R("TCP_INFO, one byte", getsockopt(ends[0], IPPROTO_TCP, TCP_INFO, &i, &length));
    T("length %u, state %d", length, i.tcpi_state);
    shutdown(ends[0], SHUT_WR);
    wait_mask(ends[1], POLLRDHUP, POLLRDHUP);
    T("after its FIN the other's state is %d", state(ends[1]));
    close(ends[0]), close(ends[1]), close(listener), close(fresh);
}

static void congestion(int family) {
    int ends[2], fd = tcp_socket(family);
    char name[16] = {0};
    socklen_t length = sizeof name;
    R("set reno", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    R("get", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length));
    T("%u bytes, \"%.16s\"", length, name);
    R("an unknown one", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nosuch", 6));
    R("an empty name", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "", 1));
    length = 3;
    memset(name, 0, sizeof name);
    R("3 bytes of room", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &length));
    T("%u bytes, \"%.16s\"", length, name);
    tcp_pair(family, ends);
    R("set on a connection", setsockopt(ends[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    close(fd), close(ends[0]), close(ends[1]);
}

static void buffers(int family) {
    int fd = tcp_socket(family);
    static const int SIZES[] = {0, 1, 5000, 100000, 1 << 30, -1};
    for (unsigned i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        MUST(set_int(fd, SOL_SOCKET, SO_SNDBUF, SIZES[i]));
        MUST(set_int(fd, SOL_SOCKET, SO_RCVBUF, SIZES[i]));
        T("%d: SNDBUF %d RCVBUF %d", SIZES[i], get_int(fd, SOL_SOCKET, SO_SNDBUF), get_int(fd, SOL_SOCKET, SO_RCVBUF));
    }
    close(fd);
}

static void segments(int family) {
    int listener = make_listener(family), client = tcp_socket(family);
    R("MAXSEG too small", set_int(client, IPPROTO_TCP, TCP_MAXSEG, 10));
    R("MAXSEG too large", set_int(client, IPPROTO_TCP, TCP_MAXSEG, 100000));
    R("MAXSEG", set_int(client, IPPROTO_TCP, TCP_MAXSEG, 700));
    MUST(connect_fd(client, family, port_of(listener)));
    int taken = MUST(accept(listener, NULL, NULL));
    T("what the peer sends is in pieces of %d at most", get_int(taken, IPPROTO_TCP, TCP_MAXSEG) <= 700);
    R("CORK", set_int(client, IPPROTO_TCP, TCP_CORK, 1));
    send_text(client, "held ");
    T("nothing arrives: %s", mask(poll1(taken, POLLIN, QUIET_MS)));
    send_text(client, "back");
    R("no CORK", set_int(client, IPPROTO_TCP, TCP_CORK, 0));
    expect_text("then all of it", taken, 9);
    close(client), close(taken), close(listener);
}

static void deferred(int family) {
    int listener = make_listener(family);
    MUST(set_int(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 10));
    int client = connect_to(family, port_of(listener));
    T("nothing to accept before data: %s", mask(poll1(listener, POLLIN, QUIET_MS)));
    send_text(client, "now");
    T("then %s", mask(wait_mask(listener, POLLIN, POLLIN)));
    int taken = MUST(accept(listener, NULL, NULL));
    expect_text("accepted with", taken, 3);
    close(client), close(taken), close(listener);
}

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        info(family);
        congestion(family);
        buffers(family);
        segments(family);
        deferred(family);
    }
    return 0;
}
