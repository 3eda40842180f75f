# A UDP server with a connected socket to itself: answers what it is asked, and "self" by way of the connected one, over every restart.
import socket
import sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
itself = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
itself.connect(server.getsockname())
print("ready", flush=True)
while True:
    data, address = server.recvfrom(2000)
    if data == b"self":
        itself.send(b"by the connected socket")
        data, own = server.recvfrom(2000)
        assert own == itself.getsockname(), (own, itself.getsockname())
    server.sendto(data, address)
