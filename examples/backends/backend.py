#!/usr/bin/env python3
"""A whole backend with Python's standard library: backend.py HOST:PORT NAME TARGET_HOST:PORT

The environment variable REVDIAL_TOKEN has the token. Streams of the proxy go to the target; after
a lost connection it dials again."""
import asyncio, os, socket, struct, sys

DATA, WINDOW, PING, GOAWAY = range(4)  # frames of yamux, and their flags
SYN, ACK, FIN, RST = 1, 2, 4, 8
CREDIT = 262144  # bytes that each side may send at first
SILENCE = 60  # seconds without a frame; the proxy sends a PING after 15 (--keepalive)
RESET = struct.pack("ii", 1, 0)  # for SO_LINGER


class Stream:
    def __init__(self, session, number):
        self.session, self.number, self.credit = session, number, CREDIT
        self.inbox, self.granted = asyncio.Queue(), asyncio.Event()

    def send(self, kind, flags, length, body=b""):
        self.session.write(struct.pack(">BBHII", 0, kind, flags, self.number, length) + body)

    async def down(self, target):
        while chunk := await self.inbox.get():
            target.write(chunk)
            await target.drain()
            self.send(WINDOW, 0, len(chunk))
        target.write_eof()

    async def up(self, target):
        while chunk := await target.read(16384):
            while chunk:
                self.granted.clear()
                part, chunk = chunk[: self.credit], chunk[self.credit :]
                self.credit -= len(part)
                if part: self.send(DATA, 0, len(part), part)
                await (self.session.drain() if part else self.granted.wait())
        self.send(WINDOW, FIN, 0)

    async def run(self, streams, target):
        ways, writer = [], None
        try:
            reader, writer = await asyncio.open_connection(*target.rsplit(":", 1))
            self.send(WINDOW, ACK, 0)
            ways = [asyncio.create_task(way) for way in (self.down(writer), self.up(reader))]
            await asyncio.gather(*ways)
        except (OSError, asyncio.CancelledError):
            for way in ways: way.cancel()
            self.send(WINDOW, RST, 0)
            if writer and not writer.is_closing():  # a FIN would look like the client's
                link = writer.get_extra_info("socket")
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
        if writer: writer.close()
        streams.pop(self.number, None)


async def serve(reader, writer, streams, target):
    while True:
        head = await asyncio.wait_for(reader.readexactly(12), SILENCE)
        _, kind, flags, number, length = struct.unpack(">BBHII", head)
        body = await reader.readexactly(length) if kind == DATA else b""
        if kind == PING and flags & SYN:
            writer.write(struct.pack(">BBHII", 0, PING, ACK, 0, length))
        if kind in (DATA, WINDOW) and flags & SYN:
            stream = streams[number] = Stream(writer, number)
            stream.task = asyncio.create_task(stream.run(streams, target))
        if kind in (PING, GOAWAY) or not (stream := streams.get(number)): continue
        if flags & RST: streams.pop(number).task.cancel()
        if body: stream.inbox.put_nowait(body)
        if flags & FIN: stream.inbox.put_nowait(b"")
        if kind == WINDOW: stream.credit += length
        stream.granted.set()


async def session(proxy, name, target):
    reader, writer = await asyncio.open_connection(*proxy.rsplit(":", 1))
    token, streams = os.environ["REVDIAL_TOKEN"], {}
    lines = ("GET /revdial HTTP/1.1", f"Host: {proxy}", "Connection: Upgrade", "Upgrade: revdial",
             f"Revdial-Name: {name}", f"Authorization: Bearer {token}", "", "")
    writer.write("\r\n".join(lines).encode())
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in answer: raise OSError(answer.decode())
        await serve(reader, writer, streams, target)
    finally:
        for stream in streams.values(): stream.task.cancel()
        writer.close()


async def main():
    while True:
        try: await session(*sys.argv[1:])
        except (OSError, EOFError, asyncio.TimeoutError) as why: print(repr(why), file=sys.stderr)
        await asyncio.sleep(1)


asyncio.run(main())
