"""An echo server on socketserver, one thread per connection, and 40 client threads with blocking sockets."""
import os
import socket
import socketserver
import sys
import threading


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def session(port, number, failures):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert sock.getpeername() == ("127.0.0.1", port)
            file = sock.makefile("rb")
            for round in range(100):
                line = os.urandom(20 + 37 * round).hex().encode() + b"\n"
                sock.sendall(line)
                back = file.readline()
                assert back == line, f"connection {number}: other bytes came back"
            sock.shutdown(socket.SHUT_WR)
            assert file.read() == b"", "bytes after the end"
    except Exception as error:
        failures.append(f"{number}: {error!r}")


def client(port):
    failures = []
    threads = [threading.Thread(target=session, args=(port, n, failures)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit("\n".join(failures))
    print(f"{len(threads)} threads, 100 lines each")


role, port = sys.argv[1], int(sys.argv[2])
if role == "server":
    with Server(("127.0.0.1", port), Handler) as server:
        server.serve_forever()
else:
    client(port)
