"""An echo server and a checking client on asyncio: streams, 100 connections at once, half-close, time-outs."""
import asyncio
import os
import sys


async def serve(port):
    async def handle(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


async def session(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    total = 0
    for size in (1, 100, 5000, 70000, 300000):
        data = os.urandom(size)
        writer.write(data)
        back, _ = await asyncio.gather(reader.readexactly(size), writer.drain())
        assert back == data, f"connection {number}: other bytes came back"
        total += size
    try:
        await asyncio.wait_for(reader.read(1), 0.05)
        raise AssertionError("bytes out of nowhere")
    except asyncio.TimeoutError:
        pass
    writer.write_eof()
    assert await reader.read() == b"", "bytes after the end"
    writer.close()
    await writer.wait_closed()
    return total


async def client(port):
    totals = await asyncio.gather(*(session(port, n) for n in range(100)))
    try:
        await asyncio.open_connection("127.0.0.1", 1)
        raise AssertionError("connected to a closed port")
    except ConnectionRefusedError:
        pass
    print(f"{len(totals)} connections, {sum(totals)} bytes each way")


role, port = sys.argv[1], int(sys.argv[2])
asyncio.run(serve(port) if role == "server" else client(port))
