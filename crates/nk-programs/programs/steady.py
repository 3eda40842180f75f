"""Asks without end and checks each answer: `steady.py http PORT SHA256` or `steady.py redis PORT`.

It says "begun" after the first right answer. SIGTERM ends it: it then says "done", how many answers were right and how many attempts failed. An answer with other bytes ("wrong") or none
within 20 s ("hung") ends it at once. With "strict" as last word so does an attempt that fails."""
import hashlib
import os
import signal
import socket
import sys
import time

kind, port = sys.argv[1], int(sys.argv[2])
strict = sys.argv[-1] == "strict"
stop = False


def end(*_):
    global stop
    stop = True


signal.signal(signal.SIGTERM, end)


def fail(why):
    print(why, flush=True)
    sys.exit(1)


class Reader:
    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.buffer = b""

    def more(self):
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionResetError("end of file")
        self.buffer += part

    def line(self):
        while b"\r\n" not in self.buffer:
            self.more()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def exactly(self, n):
        parts, have = [self.buffer], len(self.buffer)
        while have < n:
            part = self.socket.recv(min(1 << 18, n - have + 4096))
            if not part:
                raise ConnectionResetError("end of file")
            parts.append(part)
            have += len(part)
        whole = b"".join(parts)
        self.buffer = whole[n:]
        return whole[:n]


def http(r, n):
    r.socket.sendall(b"GET /files/big HTTP/1.1\r\nHost: x\r\n\r\n")
    status, length = r.line(), None
    while line := r.line():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if b" 200 " not in status or length is None:
        fail(f"wrong: {status!r}")
    if hashlib.sha256(r.exactly(length)).hexdigest() != sys.argv[3]:
        fail("wrong: other bytes")


def redis(r, n):
    value = b"%d" % n * (n % 2000 + 1)
    key = b"key%d" % os.getpid()
    for words in ((b"SET", key, value), (b"GET", key)):
        r.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
    if r.line() != b"+OK" or r.line() != b"$%d" % len(value) or r.exactly(len(value) + 2) != value + b"\r\n":
        fail("wrong: other bytes")


right = failed = 0
reader = None
while not stop:
    try:
        # Each connection carries some questions.
        if reader is None or right % 7 == 0:
            reader = Reader()
        (http if kind == "http" else redis)(reader, right)
        right += 1
        if right == 1:
            print("begun", flush=True)
    except socket.timeout:
        fail("hung")
    except OSError as error:
        if strict:
            fail(f"failed: {error!r} after {right} right answers")
        failed += 1
        reader = None
        time.sleep(0.02)
print("done", right, failed, flush=True)
