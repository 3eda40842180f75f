// shape: self
// Unconnected sockets: where a datagram came from, the port of a socket that was never bound, read and write on a connected one.
#include "udp.h"

int main(void) {
    case_start();
    EACH_FAMILY(family) {
        int server = udp_bound(family), client = udp_socket(family);
        T("unbound port is 0: %d", port_of(client) == 0);
        R("sendto", udp_to(client, family, port_of(server), "hello", 5));
        T("has a port: %d", port_of(client) != 0);
        char bytes[64];
        union address from;
        socklen_t length = sizeof from;
        R("recvfrom", recvfrom(server, bytes, sizeof bytes, 0, &from.sa, &length));
        T("address length %u, family %s, right port: %d", length, family_name(from.sa.sa_family),
          port_in(&from) == port_of(client));
        R("answer", sendto(server, "back", 4, 0, &from.sa, length));
        udp_expect("client", client);
        R("connect", connect(client, &from.sa, length)); // to itself
        R("to itself", send(client, "me", 2, 0));
        udp_expect("itself", client);
        R("connect", udp_connect(client, family, port_of(server)));
        R("peer is the server", peer_port_of(client) == port_of(server));
        R("write", write(client, "written", 7));
        R("write of nothing", write(client, "", 0));
        R("writev of nothing", writev(client, &(struct iovec){"", 0}, 1));
        struct iovec parts[3] = {{"one", 3}, {"", 0}, {"two", 3}};
        R("writev", writev(client, parts, 3));
        R("sendto with an address, connected", udp_to(client, family, port_of(server), "addressed", 9));
        R("read", read(server, bytes, sizeof bytes));
        R("read of nothing", read(server, bytes, 0));
        R("the empty one", read(server, bytes, sizeof bytes));
        struct iovec into[2] = {{bytes, 2}, {bytes + 10, 20}};
        R("readv", readv(server, into, 2));
        T("%.2s %.4s", bytes, bytes + 10);
        udp_expect("addressed", server);
        close(server);
        close(client);
    }
    return 0;
}
