"""Daemons that a process asks for a row: the first closes the connection, the second keeps the question and is silent, as one that died when the
keeper had the connection; asked again there, it refuses."""
import socket
import struct
import sys

listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
first, _ = listener.accept()
first.recv(4096)
first.close()
second, _ = listener.accept()
second.recv(4096)
answer = bytearray(second.recv(4096))
why = b"it was asked again"
struct.pack_into("=i I", answer, 8, 1, len(why))
answer[56 : 56 + len(why)] = why
second.send(answer)
second.recv(4096)
