#!/usr/bin/env python3
"""A whole backend with Python's standard library: backend.py HOST:PORT NAME TARGET_HOST:PORT

The environment variable REVDIAL_TOKEN has the token. Streams of the proxy go to the target."""
import asyncio, os, struct, sys

DATA, WINDOW, PING, GOAWAY = range(4)  # frames of yamux, and their flags
SYN, ACK, FIN, RST = 1, 2, 4, 8
CREDIT = 262144  # bytes that each side may send at first


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
        try:
            reader, writer = await asyncio.open_connection(*target.split(":"))
            self.send(WINDOW, ACK, 0)
            await asyncio.gather(self.down(writer), self.up(reader))
            writer.close()
        except (OSError, asyncio.CancelledError):
            self.send(WINDOW, RST, 0)
        del streams[self.number]


async def session(proxy, name, target):
    reader, writer = await asyncio.open_connection(*proxy.split(":"))
    token = os.environ["REVDIAL_TOKEN"]
    lines = ("GET /revdial HTTP/1.1", f"Host: {proxy}", "Connection: Upgrade", "Upgrade: revdial",
             f"Revdial-Name: {name}", f"Authorization: Bearer {token}", "", "")
    writer.write("\r\n".join(lines).encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    if b" 101 " not in answer: sys.exit(answer.decode())
    streams, tasks = {}, {}
    while True:
        _, kind, flags, number, length = struct.unpack(">BBHII", await reader.readexactly(12))
        body = await reader.readexactly(length) if kind == DATA else b""
        if kind == PING and flags & SYN:
            writer.write(struct.pack(">BBHII", 0, PING, ACK, 0, length))
        if kind in (DATA, WINDOW) and flags & SYN:
            streams[number] = Stream(writer, number)
            tasks[number] = asyncio.create_task(streams[number].run(streams, target))
        if kind in (PING, GOAWAY) or not (stream := streams.get(number)): continue
        if flags & RST: tasks.pop(number).cancel()
        if body: stream.inbox.put_nowait(body)
        if flags & FIN: stream.inbox.put_nowait(b"")
        if kind == WINDOW: stream.credit += length
        stream.granted.set()


asyncio.run(session(*sys.argv[1:]))
