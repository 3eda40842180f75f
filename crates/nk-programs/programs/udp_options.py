"""UDP sockets with options. For each line "ask" on standard input it says what they are, and what reaches them."""
import socket
import struct
import sys

port = int(sys.argv[1])
GROUP, LEFT, LONG = "239.7.7.7", "239.7.7.8", "239.7.7.9"
LO = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton("127.0.0.1"))
GONE = struct.pack("4s4s", socket.inet_aton(LEFT), socket.inet_aton("127.0.0.1"))


def udp(family=socket.AF_INET, *options):
    s = socket.socket(family, socket.SOCK_DGRAM)
    for level, name, value in options:
        s.setsockopt(level, name, value)
    s.settimeout(2)
    return s


BASE, IP, IP6 = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6
SHARED = (BASE, socket.SO_REUSEPORT, 1)
first, second = udp(socket.AF_INET, SHARED), udp(socket.AF_INET, SHARED)
alone = udp(socket.AF_INET6, (IP6, socket.IPV6_V6ONLY, 1), SHARED)
# struct group_req: an interface, and a sockaddr_storage on a multiple of 8.
GROUP_REQ = struct.pack("=I4x128s", 1, struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(LONG)))
group = udp(socket.AF_INET, (BASE, socket.SO_REUSEADDR, 1), (IP, socket.IP_ADD_MEMBERSHIP, LO), (IP, socket.IP_ADD_MEMBERSHIP, GONE),
            (IP, socket.IP_DROP_MEMBERSHIP, GONE), (IP, socket.IP_TTL, 9))
group.setsockopt(BASE, socket.SO_REUSEADDR, 0)
group.setsockopt(BASE, socket.SO_REUSEADDR, 1)
# MCAST_JOIN_GROUP, on the first interface.
long = udp(socket.AF_INET, (IP, 42, GROUP_REQ))
first.bind(("127.0.0.1", port))
second.bind(("127.0.0.1", port))
alone.bind(("::", port))
group.bind(("0.0.0.0", port + 1))
long.bind(("0.0.0.0", port + 2))
NAMES = {
    "first": (first, [SHARED[:2]]),
    "second": (second, [SHARED[:2]]),
    "alone": (alone, [(IP6, socket.IPV6_V6ONLY), SHARED[:2]]),
    "group": (group, [(BASE, socket.SO_REUSEADDR), (IP, socket.IP_TTL)]),
}


def reaches(s, family, to, *options):
    sender = udp(family, *options)
    sender.sendto(b"news", to)
    try:
        return s.recv(100) == b"news"
    except TimeoutError:
        return False


def look():
    said = [f"{n}:{[s.getsockopt(*o) for o in options]}:{s.getsockname()[1] - port}" for n, (s, options) in NAMES.items()]
    iface = (IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    said.append(f"unicast6:{reaches(alone, socket.AF_INET6, ('::1', port))}")
    said.append(f"joined:{reaches(group, socket.AF_INET, (GROUP, port + 1), iface)}")
    said.append(f"long:{reaches(long, socket.AF_INET, (LONG, port + 2), iface)}")
    group.settimeout(0.3)
    said.append(f"left:{reaches(group, socket.AF_INET, (LEFT, port + 1), iface)}")
    group.settimeout(2)
    print(" ".join(said), flush=True)


for line in sys.stdin:
    if line.strip() == "ask":
        look()
