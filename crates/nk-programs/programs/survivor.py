"""A client that outlives what serves it: `survivor.py PORT SECONDS` talks to an echo server without end.

It says "again" each time an exchange succeeds after a failure, and the error's name each time one fails; a read that
takes 10 s is a failure of its own ("hung"), which ends it."""
import errno
import socket
import sys
import time

port, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
broken, connection, exchanges = True, None, 0
while time.monotonic() < end:
    try:
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        data = b"x" * (exchanges % 3000 + 1)
        connection.sendall(data + b"\n")
        got = b""
        while not got.endswith(b"\n"):
            part = connection.recv(65536)
            if not part:
                raise ConnectionResetError(errno.ENODATA, "end of file")
            got += part
        assert got == data + b"\n", "other bytes came back"
        exchanges += 1
        if broken:
            print("again", flush=True)
            broken = False
    except socket.timeout:
        print("hung", flush=True)
        sys.exit(1)
    except OSError as error:
        if not broken:
            print(errno.errorcode.get(error.errno, error.errno), flush=True)
        broken = True
        if connection is not None:
            connection.close()
        connection = None
        time.sleep(0.1)
    time.sleep(0.01)
print("done", exchanges, flush=True)
