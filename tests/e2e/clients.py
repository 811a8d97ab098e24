# Clients that do what curl and nc cannot: look at how a connection ends, stop reading, be many.
#     python3 clients.py COMMAND ADDRESS...      each prints what it saw; addresses are HOST:PORT
import asyncio, hashlib, os, random, resource, select, signal, socket, statistics, struct, sys, time

CHUNK = 1 << 18
RESET = struct.pack("ii", 1, 0)


def connect(address, buffers=0, timeout=30):
    """With small buffers the system takes no megabytes that nobody reads; they end with RST."""
    sock = socket.socket(socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET)
    if buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.settimeout(timeout)
    host, _, port = address.rpartition(":")
    sock.connect(address[5:] if address.startswith("unix:") else (host, int(port)))
    return sock


def ending(error):
    if isinstance(error, ConnectionResetError):
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else error.__class__.__name__


def say(*words):
    print(*words, flush=True)


class Pace:
    """Holds a loop to so many bytes a second; 0 = as fast as it goes."""

    def __init__(self, rate):
        self.rate, self.began = rate, time.monotonic()

    def wait(self, size):
        if self.rate:
            time.sleep(max(0, self.began + size / self.rate - time.monotonic()))


def read(address, path, rate="0", first=""):
    """Reads to the end: is it a prefix of the file, and how did it end? With "finish" it sends FIN
    before that.

    Prints "reading" once a megabyte has come, then "BYTES same|different eof|reset|… MS", the
    latter since the byte that came last."""
    sock, pace, size, same, buf = connect(address), Pace(int(rate)), 0, True, bytearray(1 << 16)
    sock.settimeout(60)
    if first == "finish":
        sock.shutdown(socket.SHUT_WR)
    last = time.monotonic()
    with open(path, "rb") as f:
        try:
            while n := sock.recv_into(buf):
                last = time.monotonic()
                same = same and f.read(n) == memoryview(buf)[:n]
                if size < 1 << 20 <= size + n:
                    say("reading")
                size += n
                pace.wait(size)
            how = "eof"
        except OSError as e:
            how = ending(e)
    say(size, "same" if same else "different", how, round((time.monotonic() - last) * 1000))


def write(address, path, rate="0"):
    """Sends the file and finishes. Prints "writing" after a megabyte, then the answer or error."""
    sock, pace, size = connect(address), Pace(int(rate)), 0
    sock.settimeout(60)
    with open(path, "rb") as f:
        try:
            while data := f.read(1 << 16):
                sock.sendall(data)
                size += len(data)
                if size == 1 << 20:
                    say("writing")
                pace.wait(size)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.makefile().readline().strip() or "eof"
        except OSError as e:
            answer = ending(e)
    say(size, answer)


def idle(address):
    """Exchanges a byte, then waits. Prints "idle", then how it ended and after how many ms."""
    sock = connect(address)
    ask(sock, b"!")
    say("idle")
    sock.settimeout(60)
    began = time.monotonic()
    try:
        how = "data" if sock.recv(1) else "eof"
    except OSError as e:
        how = ending(e)
    say(how, round((time.monotonic() - began) * 1000))


def finish_late(address, path):
    """Reads to EOF first, and sends the file only then."""
    sock = connect(address)
    greeting = sock.makefile().read().strip()
    with open(path, "rb") as f:
        sock.sendfile(f)
    sock.shutdown(socket.SHUT_WR)
    say(greeting)
    sock.recv(1)


def refused(address, seconds="15"):
    """Connects and waits: how does it end, and after how many ms?"""
    began = time.monotonic()
    try:
        sock = connect(address)
        sock.settimeout(float(seconds))
        how = "data" if sock.recv(1) else "eof"
    except OSError as e:
        how = ending(e)
    say(how, round((time.monotonic() - began) * 1000))


def hold(address, count, *what):
    """Connections that read one byte and then nothing more, until stdin ends ("pending": not even
    that one). They end with RST."""
    socks = [connect(address, buffers=65536) for _ in range(int(count))]
    if "pending" not in what:
        for s in socks:
            s.recv(1)
    say("holding", len(socks))
    sys.stdin.read()


def stuff(address, count):
    """Connections that send until nothing more is taken, then wait until stdin ends."""
    socks = [connect(address, buffers=65536) for _ in range(int(count))]
    total, data = 0, bytes(CHUNK)
    poll = select.poll()
    by_fd = {s.fileno(): s for s in socks}
    for s in socks:
        s.setblocking(False)
        poll.register(s, select.POLLOUT)
    while ready := poll.poll(500):
        for fd, _ in ready:
            total += by_fd[fd].send(data)
    say("holding", len(socks), total)
    sys.stdin.read()


async def fetch(reader, writer, path):
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200") and hashlib.sha256(body).hexdigest()


async def fetch_many(address, path, count):
    host, _, port = address.rpartition(":")
    pairs = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(count)))
    return await asyncio.gather(*(fetch(*pair, path) for pair in pairs))


def parallel(address, path, count):
    """All connections are there before the first request is sent. Prints how many got what."""
    began = time.monotonic()
    bodies = asyncio.run(asyncio.wait_for(fetch_many(address, path, int(count)), 60))
    for body in set(bodies):
        say(bodies.count(body), body, round((time.monotonic() - began) * 1000))


def receive(sock, count):
    """Fewer bytes at EOF. MSG_WAITALL waits for nothing where a socket has a timeout."""
    got = b""
    while len(got) < count:
        data = sock.recv(count - len(got))
        if not data:
            break
        got += data
    return got


def ask(sock, message):
    sock.sendall(message)
    return receive(sock, len(message)) == message


def crowd(address, count, active, rounds):
    """Many connections to an echo server, some of them busy; at the end each must still work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    socks = [connect(address) for _ in range(int(count))]
    alive = sum(ask(s, b"%08d" % i) for i, s in enumerate(socks))
    opened = time.monotonic() - began
    busy, times, good = socks[: int(active)], [], 0
    say("idle", alive)
    for _ in range(int(rounds)):
        began = time.monotonic()
        for i, s in enumerate(busy):
            s.sendall(b"%064d" % i)
        good += sum(receive(s, 64) == b"%064d" % i for i, s in enumerate(busy))
        times.append(time.monotonic() - began)
    still = sum(ask(s, b"still") for s in socks)
    say(alive, good, still, round(opened * 1000), round(statistics.median(times) * 1e6 / len(busy)))


def live(address, count):
    """Connections to an echo server. At the end of stdin each must still work."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks = [connect(address) for _ in range(int(count))]
    say("live", sum(ask(s, b"%08d" % i) for i, s in enumerate(socks)))
    sys.stdin.read()
    say("still", sum(ask(s, b"%08d" % i) for i, s in enumerate(socks)))


def echo_once(address):
    """Prints what an echo server answers."""
    with connect(address, timeout=5) as sock:
        say("ping" if ask(sock, b"ping") else "something else")


def steady(address):
    """One connection to an echo server after the other, until stdin ends. How many failed?"""
    good, bad, why = 0, 0, set()
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            with connect(address) as sock:
                good, bad = (good + 1, bad) if ask(sock, b"ping") else (good, bad + 1)
        except OSError as e:
            bad += 1
            why.add(ending(e))
        if good == 20:
            say("dialling")
    say("good", good, "bad", bad, *why)


def answer(port, *command):
    """A server that gets its address only now: listens, then runs the command; answers once."""
    with socket.socket() as listener:
        listener.bind(("", int(port)))
        listener.listen()
        os.system(" ".join(command))
        sock, _ = listener.accept()
        question = sock.makefile().read().strip()
        sock.sendall(f"answer to {question}\n".encode())
        sock.close()


def one_answer(stream):
    """The status of the answer that comes next; its body, of a Content-Length, is read, too."""
    status, length = stream.readline().split(b" ")[1:2], 0
    while line := stream.readline().strip().lower():
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    stream.read(length)
    return status[0].decode() if status else "closed"


def talk(address, *requests):
    """Sends requests (files) one after the other on one connection, as long as it is there."""
    sock, seen = connect(address, timeout=5), []
    stream = sock.makefile("rb")
    try:
        for path in requests:
            with open(path, "rb") as f:
                sock.sendall(f.read())
            seen.append(one_answer(stream))
    except OSError as e:
        seen.append("closed" if ending(e) in ("reset", "BrokenPipeError") else ending(e))
    say(*seen)


def rush(address, count, first):
    """So many clients at one time, each with a first byte back. Prints how many were served, and
    the milliseconds of the one that waited for longest."""
    socks, waits = [], []
    began = time.monotonic()
    for _ in range(int(count)):
        socks.append(connect(address))
        socks[-1].sendall(first.encode())
    while socks and time.monotonic() < began + 15:
        for sock in select.select(socks, [], [], 1)[0]:
            socks.remove(sock)
            try:
                if sock.recv(1):
                    waits.append(round((time.monotonic() - began) * 1000))
            except OSError:
                pass
            sock.close()
    say(len(waits), max(waits, default=0))


def port(*_):
    """A port that is free on all addresses, of those that the system gives to nobody by itself."""
    for _ in range(1000):
        with socket.socket() as s:
            try:
                s.bind(("0.0.0.0", random.randrange(20000, 32768)))
            except OSError:
                continue
            say(s.getsockname()[1])
            return
    raise SystemExit("no port is free")


signal.alarm(120)  # whatever happens, no client stays behind
COMMANDS = (read, write, idle, finish_late, refused, hold, stuff, parallel, crowd, answer, talk)
COMMANDS += (rush, port, live, steady, echo_once)
{f.__name__: f for f in COMMANDS}[sys.argv[1]](*sys.argv[2:])
