// shape: self
// What is not TCP over IP stays as it is: Unix sockets of each type, socketpair, abstract names, unknown families.
#include "case.h"

int main(void) {
    case_start();
    int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET}, pair[2];
    for (int i = 0; i < 3; i++) {
        MUST(socketpair(AF_UNIX, types[i], 0, pair));
        MUST(send(pair[0], "unix", 4, 0));
        expect_text("pair", pair[1], 4);
        T("domain %s", family_name(get_int(pair[0], SOL_SOCKET, SO_DOMAIN)));
    }
    int server = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", "s.sock");
    R("bind", bind(server, (void *)&a, sizeof a));
    R("listen", listen(server, 4));
    R("connect", connect(client, (void *)&a, sizeof a));
    int taken = RF("accept", accept(server, NULL, NULL));
    send_text(client, "path");
    expect_text("server", taken, 4);
    unlink("s.sock");
    struct sockaddr_un abstract = {.sun_family = AF_UNIX};
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 +
                       snprintf(abstract.sun_path + 1, 90, "case-%d", getpid());
    server = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    R("bind", bind(server, (void *)&abstract, length));
    R("listen", listen(server, 4));
    R("connect", connect(client, (void *)&abstract, length));
    R("socket of an unknown family", socket(77, SOCK_STREAM, 0));
    R("socket of an unknown type", socket(AF_INET, 77, 0));
    R("stream with UDP's protocol", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    R("socketpair of inet", socketpair(AF_INET, SOCK_STREAM, 0, pair));
    R("unknown flags", socket(AF_INET, SOCK_STREAM | 0x100000, 0));
    return 0;
}
