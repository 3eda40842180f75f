# QUIC by aioquic: `server PORT` answers each stream with its digest and its bytes reversed, `client PORT` checks that.
import asyncio
import hashlib
import ssl
import sys

from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration

role, port = sys.argv[1], int(sys.argv[2])


async def answer(reader, writer):
    data = await reader.read()
    writer.write(hashlib.sha256(data).hexdigest().encode() + data[::-1])
    writer.write_eof()


async def server():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["echo"])
    configuration.load_cert_chain("cert.pem", "key.pem")
    handler = lambda reader, writer: asyncio.ensure_future(answer(reader, writer))
    await serve("127.0.0.1", port, configuration=configuration, stream_handler=handler)
    print("ready", flush=True)
    await asyncio.sleep(3600)


async def client():
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=["echo"], verify_mode=ssl.CERT_NONE
    )
    async with connect("127.0.0.1", port, configuration=configuration) as connection:
        for length in (10, 100_000, 400_000):
            reader, writer = await connection.create_stream()
            data = bytes(i * 7 & 255 for i in range(length))
            writer.write(data)
            writer.write_eof()
            got = await reader.read()
            assert got == hashlib.sha256(data).hexdigest().encode() + data[::-1], length
    print("3 streams")


asyncio.run(server() if role == "server" else client())
