# asyncio datagrams: `server PORT` answers until it is killed; `client PORT` asks 300 times, up to 60,000 bytes each.
import asyncio
import sys

role, port = sys.argv[1], int(sys.argv[2])


class Server(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data, address)


class Client(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = asyncio.Queue()

    def datagram_received(self, data, address):
        self.got.put_nowait(data)

    def error_received(self, error):
        raise SystemExit(f"error: {error}")


async def main():
    loop = asyncio.get_running_loop()
    if role == "server":
        await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", port))
        print("ready", flush=True)
        await asyncio.sleep(3600)
    transport, client = await loop.create_datagram_endpoint(Client, remote_addr=("127.0.0.1", port))
    for n in range(300):
        ask = n.to_bytes(4, "big") + bytes(n * 7 & 255 for _ in range(n * 200 % 60000))
        for _ in range(20):  # a datagram may be lost
            transport.sendto(ask)
            try:
                while (data := await asyncio.wait_for(client.got.get(), 1)) != ask:
                    assert data[:4] < ask[:4], "not what was sent"
                break
            except asyncio.TimeoutError:
                pass
        else:
            raise SystemExit(f"no answer to {n}")
    print("300 answers")


asyncio.run(main())
