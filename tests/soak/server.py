"""What the agents of a soak lead to. Prints its port, then a line for each thing that must not be.
A connection says what it wants in its first line:
    echo            what comes goes back
    give N SEED     N bytes, then the end
    take N          reads to the end, which must come after N bytes; answers with their SHA-256"""
import asyncio
import hashlib
import random


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def give(writer, size, seed):
    writer.write(random.Random(seed).randbytes(size))
    await writer.drain()


async def take(reader, writer, size):
    digest, got = hashlib.sha256(), 0
    while data := await reader.read(1 << 16):
        digest.update(data)
        got += len(data)
    if got != size:
        print(f"false EOF at a target after {got} of {size} bytes", flush=True)
    writer.write(digest.hexdigest().encode() + b"\n")


async def serve(reader, writer):
    try:
        words = (await reader.readline()).split()
        if words[:1] == [b"echo"]:
            await echo(reader, writer)
        elif words[:1] == [b"give"]:
            await give(writer, int(words[1]), int(words[2]))
        elif words[:1] == [b"take"]:
            await take(reader, writer, int(words[1]))
        writer.write_eof()
        await reader.read(1)
    except OSError:
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
