# Agents that are many and cheap, over TLS.     python3 many_agents.py HOST:PORT COUNT CA TOKEN_FILE
# Each registers as "many-N", answers pings, and comes back when its session ends. Prints "up COUNT"
# each time that all are there. At USR1 all leave and come back at once.
import asyncio, random, resource, signal, ssl, struct, sys

address, count, ca, tokens = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
PING, SYN, ACK = 2, 1, 2
token = open(tokens).read().strip()
tls = ssl.create_default_context(cafile=ca)
writers = set()


def request(number):
    return "\r\n".join((
        "GET /revdial HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: revdial",
        f"Revdial-Name: many-{number}", f"Revdial-Instance: many-{number}.1",
        f"Authorization: Bearer {token}", "", "")).encode()


async def session(number):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls,
                                                   server_hostname="localhost")
    try:
        writer.write(request(number))
        if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
            return
        writers.add(writer)
        if len(writers) == count:
            print("up", count, flush=True)
        while True:
            _, kind, flags, _, length = struct.unpack(">BBHII", await reader.readexactly(12))
            if kind == 0:
                await reader.readexactly(length)
            elif kind == PING and flags & SYN:
                writer.write(struct.pack(">BBHII", 0, PING, ACK, 0, length))
    finally:
        writers.discard(writer)
        writer.transport.abort()


async def agent(number):
    while True:
        try:
            await session(number)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        await asyncio.sleep(random.uniform(0.05, 1))


def leave():
    for writer in list(writers):
        writer.transport.abort()


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, leave)
    await asyncio.gather(*(agent(n) for n in range(count)))


limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
signal.alarm(300)
asyncio.run(main())
