# One call after both are dead, in a process in which nothing told of it: nobody else is there to wake who sleeps.
import errno, os, socket, sys, time
far = socket.socket()
far.bind(('127.0.0.1', 0)); far.listen(8)
near = socket.create_connection(far.getsockname())
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(('127.0.0.1', 0))
one = socket.socket()
print('waits', flush=True)
sys.stdin.readline()
calls = {
    'connect': lambda: one.connect(far.getsockname()),
    'recv': lambda: near.recv(1),
    'recvfrom': lambda: udp.recv(1),
    'send': lambda: near.sendall(bytes(1 << 26)),
}
try:
    calls[sys.argv[1]]()
    print('ended')
except OSError as e:
    print(errno.errorcode[e.errno])
