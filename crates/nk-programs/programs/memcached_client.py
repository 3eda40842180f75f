"""Threads that set and get values in memcached and check each."""
import os
import socket
import sys
import threading

failures = []


def session(port, number):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            file = sock.makefile("rb")
            for round in range(300):
                key = f"k{number}.{round % 17}"
                value = os.urandom(1 + round * 211 % 20000).hex().encode()
                sock.sendall(b"set %s 0 0 %d\r\n%s\r\n" % (key.encode(), len(value), value))
                assert file.readline() == b"STORED\r\n"
                sock.sendall(b"get %s\r\n" % key.encode())
                header = file.readline().split()
                assert header[:2] == [b"VALUE", key.encode()] and int(header[3]) == len(value), header
                assert file.read(len(value) + 2) == value + b"\r\n", "another value"
                assert file.readline() == b"END\r\n"
    except Exception as error:
        failures.append(f"{number}: {error!r}")


threads = [threading.Thread(target=session, args=(int(sys.argv[1]), n)) for n in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    sys.exit("\n".join(failures))
print(f"{len(threads)} connections, 300 values each")
