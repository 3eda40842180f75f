# A guest whose calls wait; each says how it ended.
import errno, os, select, socket, sys, threading
far = socket.socket()
far.bind(('127.0.0.1', 0)); far.listen(8)
def pair():
    near = socket.create_connection(far.getsockname())
    return near, far.accept()[0]
near, _near = pair()
full, _full = pair()
late, _late = pair()
def asleep(ask):
    # What is told is an error: the connection says which.
    def call():
        assert ask(), 'nothing was told'
        near.recv(1)
    return call
poll, epoll = select.poll(), select.epoll()
poll.register(near, select.POLLIN)
epoll.register(near, select.EPOLLIN | select.EPOLLET)
def say(name, call):
    try:
        call()
        how = 'ended'
    except OSError as e:
        how = errno.errorcode[e.errno]
    # Not in pieces.
    os.write(1, f'{name} {how}\n'.encode())
def push_many():
    for _ in range(5000): late.shutdown(socket.SHUT_RDWR)
def fork():
    child = os.fork()
    if child == 0:
        try:
            socket.socket().bind(('127.0.0.1', 0))
            os._exit(0)
        except OSError as e:
            os._exit(e.errno)
    raise OSError(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 'in the child')
waiting = [
    ('recv', lambda: near.recv(1)),
    ('accept', lambda: far.accept()),
    ('send', lambda: full.sendall(bytes(1 << 26))),
    ('poll', asleep(poll.poll)),
    ('epoll', asleep(epoll.poll)),
    ('select', asleep(lambda: select.select([near], [], []))),
]
waiting = [threading.Thread(target=say, args=w, daemon=True) for w in waiting]
for t in waiting: t.start()
print('waits', flush=True)
sys.stdin.readline()
say('new', lambda: socket.socket().bind(('127.0.0.1', 0)))
# More than its ring takes.
say('pushes', push_many)
say('fork', fork)
for t in waiting: t.join()
