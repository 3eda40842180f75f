# Children send datagrams of one chunk and of several, and are killed while they do; what arrives is whole. Says so and waits.
import os
import random
import signal
import socket
import time

LENGTHS = [10, 5000, 20000, 60000]
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.setblocking(False)
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect(receiver.getsockname())


def flood():
    while True:
        length = random.choice(LENGTHS)
        try:
            sender.send(bytes([length & 255]) * length, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass


def read_all():
    count = 0
    while True:
        try:
            data = receiver.recv(70000)
        except BlockingIOError:
            return count
        assert len(data) in LENGTHS and data == bytes([len(data) & 255]) * len(data), len(data)
        count += 1


got = 0
for _ in range(40):
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            flood()
        children.append(child)
    time.sleep(0.04)
    got += read_all()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
time.sleep(0.5)
got += read_all()
assert got > 0
sender.send(b"x" * 10)
time.sleep(0.2)
receiver.recv(100)
print("done", got, flush=True)
time.sleep(3600)
