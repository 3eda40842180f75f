"""A server that can be made to hold on to what it gets: `greedy.py PORT`.

The first byte of a connection says what to do: E echoes, H holds the connection and reads nothing more of it until
the peer closes. When accept fails (no descriptors, no memory), it waits a moment and goes on: it is not this
server's fault. SIGUSR1 closes what it holds, and from then on it holds nothing."""
import selectors
import signal
import socket
import sys
import time

selector = selectors.DefaultSelector()
held = []
generous = False
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(1024)
listener.setblocking(False)
selector.register(listener, selectors.EVENT_READ, "accept")


def let_go(*_):
    global generous
    generous = True
    while held:
        held.pop().close()


signal.signal(signal.SIGUSR1, let_go)
failures = 0
while True:
    for key, _ in selector.select(1.0):
        if key.data == "accept":
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                failures += 1
                if failures <= 5:
                    print("accept:", error.strerror, flush=True)
                time.sleep(0.02)
                continue
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, "first")
            continue
        connection = key.fileobj
        try:
            data = connection.recv(1 if key.data == "first" else 65536)
            if key.data == "first" and data == b"H":
                selector.unregister(connection)
                if generous:
                    connection.close()
                else:
                    held.append(connection)
                continue
            if key.data == "first" and data == b"E":
                selector.modify(connection, selectors.EVENT_READ, "echo")
                continue
            if data:
                connection.setblocking(True)
                connection.sendall(data)
                connection.setblocking(False)
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        selector.unregister(connection)
        connection.close()
