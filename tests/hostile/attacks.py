"""The attacks. Each has two phases: at the limit, where some must be survived by the attacker's own
session, and past it. Numbers are those of the tables of threats, or of the CVE of the same attack
on HTTP/2."""
import collections
import errno
import itertools
import os
import random
import select
import socket
import time
from typing import Callable, NamedTuple

from programs import KIB, MIB
import wire
from wire import ABORT, ACK, DATA, FIN, GOAWAY, PING, RST, SYN, WINDOW, WINDOW_BYTES, frame

# Limits of the programs (impl.mux). Rates that only an attack reaches are for 256 streams, and
# scale with the streams that an end takes.
GLITCHES, RESETS, WINDOWS, PINGS = 100, 33, 100, 2000  # a second
STREAMS = {"proxy": 4096, "agent": 65536}
SESSION_WINDOW, PENDING = 64 * MIB, 512
SHARE = 0.8  # of a rate, for an attacker that means to stay within it
CROWD = 5000
LEFT = 64  # sockets that a flood has not closed yet: these sessions linger for two seconds
BLOCK = 1 << 16


def memory(pending=0, sessions=0, streams=0, clients=0, unread=0):
    """The most that an attack may cost, by the limits: before authentication 8 KiB of head and 2
    KiB for each connection; for a session its state, buffers, refused streams and pongs; for a
    stream 512 bytes and a relay; what may be unread, in blocks that may be half empty; for a client
    of a port that waits 4 KiB of first bytes. And 6 MiB for the allocator and for blocks kept for
    reuse."""
    return (pending * 10 * KIB + sessions * 400 * KIB + streams * 1536 + clients * 5 * KIB +
            2 * unread + 6 * MIB)


class Attack(NamedTuple):
    number: str
    what: str
    victim: str  # "proxy" or "agent"
    run: Callable
    memory: int
    is_survived: bool = False  # sessions within the limit stay up
    is_ended: bool = False  # sessions past the limit are ended
    options: tuple = ()  # of the proxy
    gone: float = 5  # seconds after which nothing is left of the attackers


def scaled(scene, rate):
    """Within what the victim takes in a second."""
    return SHARE * rate * STREAMS[scene.attack.victim] // 256


# ---- floods of frames

def push(scene, sock, data, is_reading):
    """Sends all of it, and reads meanwhile, or does not so that the victim's writes are blocked."""
    view, poll = memoryview(data), select.poll()
    poll.register(sock, select.POLLOUT | (select.POLLIN if is_reading else 0))
    while view and not scene.is_over():
        events = dict(poll.poll(50)).get(sock.fileno(), 0)
        if events & select.POLLIN and not sock.recv(BLOCK):
            raise ConnectionError("the end")
        if events & ~select.POLLIN:
            view = view[sock.send(view):]


def repeat(data):
    """As many as fit in a block, again and again."""
    count = max(1, BLOCK // len(data))
    return itertools.repeat((data * count, count))


def flood(scene, start, rate=None, is_reading=True):
    """start() opens a session and gives its socket and pairs of (bytes, number of frames). What the
    victim ends is started again."""
    while not scene.is_over():
        sock = None
        try:
            sock, blocks = start()
            scene.sessions += 1
            sock.setblocking(False)
            began, sent = time.monotonic(), 0
            for data, count in blocks:
                if rate and count > 1:  # in steps of a hundredth of a second
                    size = len(data) // count
                    count = max(1, min(count, int(rate / 100)))
                    data = data[:size * count]
                push(scene, sock, data, is_reading)
                sent += count
                scene.sent += count
                if rate:
                    scene.sleep(began + sent / rate - time.monotonic(),
                                sock if is_reading else None)
                if scene.is_over():
                    break
            scene.wait(sock if is_reading else None)
        except OSError:
            if not scene.is_over():
                scene.ended += 1 if sock else 0
                scene.let_go(LEFT)
                scene.sleep(0 if sock else 0.02)
        finally:
            if sock:
                scene.leaving.append(sock)


def pings(scene, is_past):
    flood(scene, lambda: (scene.session(buffers=4096), repeat(frame(PING, SYN, 0, 7))),
          None if is_past else PINGS * SHARE, False)


def empty_data(scene, is_past):
    def start():
        sock, stream = scene.session_with_stream()
        return sock, repeat(frame(DATA, 0, stream, 0))
    flood(scene, start, None if is_past else scaled(scene, GLITCHES), False)


def empty_windows(scene, is_past):
    def start():
        sock, stream = scene.session_with_stream()
        return sock, repeat(frame(WINDOW, 0, stream, 0))
    flood(scene, start, None if is_past else scaled(scene, min(GLITCHES, WINDOWS)))


def tiny_windows(scene, is_past):
    """The stream has a sender that waits for credit."""
    def start():
        sock, stream = scene.session_with_stream(is_sending=True)
        return sock, repeat(frame(WINDOW, 0, stream, 1))
    flood(scene, start, None if is_past else scaled(scene, WINDOWS))


def tiny_data(scene, is_past):
    """The window of a stream in frames of one byte that nobody reads. What sockets take of it is
    granted anew; past it comes a frame that is longer than any window."""
    def start():
        sock, stream = scene.session_with_stream()
        byte = frame(DATA, 0, stream, 1, b"x")
        blocks = [(byte * 1024, 1024)] * (WINDOW_BYTES // 1024)
        return sock, blocks + is_past * [(frame(DATA, 0, stream, 1 << 25), 1)]
    flood(scene, start)


def goaways(scene, is_past):
    flood(scene, lambda: (scene.session(), repeat(frame(GOAWAY, 0, 0, 0))),
          None if is_past else 1000)


# ---- streams

def opens(scene, is_past, make, rate, is_reading=True):
    """make(id) has the frames of one stream."""
    def start():
        sock = scene.session(buffers=0 if is_reading else 4096)
        ids = itertools.count(scene.first_stream, 2)
        many = (b"".join(make(next(ids)) for _ in range(count)) for count in itertools.repeat(size))
        return sock, ((block, size) for block in many)

    size = 200 if is_past else 1
    flood(scene, start, None if is_past else rate, is_reading)


def silent_opens(scene, is_past):
    """Streams that never say where they go; more than there may be are refused."""
    opens(scene, is_past, lambda i: frame(WINDOW, SYN, i, 0), STREAMS["proxy"] // 6)


def rapid_reset(scene, is_past):
    opens(scene, is_past,
          lambda i: wire.opening(i, scene.target) + frame(WINDOW, RST, i, 2),
          scaled(scene, RESETS))


def made_you_reset(scene, is_past):
    """A stream that ends before it says where it goes must be reset by the victim."""
    opens(scene, is_past, lambda i: frame(WINDOW, SYN | FIN, i, 0), scaled(scene, RESETS), False)


def half_open(scene, is_past):
    """As many streams as there may be, which never say where they go; then more."""
    def start():
        sock, first = scene.session(), scene.first_stream
        count = STREAMS["agent"] + (200 if is_past else 0)
        ids = range(first, first + 2 * count, 2)
        step = 512
        return sock, ((b"".join(frame(WINDOW, SYN, i, 0) for i in ids[at:at + step]), step)
                      for at in range(0, count, step))
    flood(scene, start)


def unanswered_dials(scene, is_past):
    """Streams to a target that does not answer: each is a connection that is being opened."""
    def start():
        sock = scene.session()
        count = 4000 if is_past else 200
        ids = range(scene.first_stream, scene.first_stream + 2 * count, 2)
        return sock, ((wire.opening(i, scene.full), 1) for i in ids)
    flood(scene, start)


def dead_zones(scene, is_past):
    """Names of zones whose server does not answer. 64 lookups at the same time are the limit."""
    def start():
        sock = scene.session()
        count = 4000 if is_past else 60
        ids = range(scene.first_stream, scene.first_stream + 2 * count, 2)
        return sock, ((wire.opening(i, f"h{i}.zone{i % 97}.dead.test:80"), 1) for i in ids)
    flood(scene, start)


def slow_reader(scene, is_past):
    """Streams from a target that sends for ever, much credit, and then nothing is read."""
    def start():
        sock = scene.session(buffers=4096)
        count = 1000 if is_past else 200
        ids = range(scene.first_stream, scene.first_stream + 2 * count, 2)
        return sock, ((wire.opening(i, scene.source) + frame(WINDOW, 0, i, 1 << 30), 2)
                      for i in ids)
    flood(scene, start, is_reading=False)


def unread_uploads(scene, is_past):
    """Windows of streams full of bytes whose target does not read: past 64 MiB some are reset."""
    def start():
        sock = scene.session()
        count = 1200 if is_past else 900
        ids = range(scene.first_stream, scene.first_stream + 2 * count, 2)
        body = bytes(WINDOW_BYTES - 4096)
        return sock, ((wire.opening(i, scene.silent) + frame(DATA, 0, i, len(body), body), 3)
                      for i in ids)
    flood(scene, start)


def garbage(scene, is_past):
    """What no peer sends: each session is ended at once."""
    def start():
        sock, stream = scene.session_with_stream()
        kinds = (os.urandom(4096), frame(DATA, 0, stream, 0x7FFFFFFF),
                 frame(WINDOW, 0, stream, 0xFFFFFFFF), frame(WINDOW, SYN, 0, 0),
                 frame(9, 0, 0, 0), frame(DATA, 0, 0x7FFFFFF1, 1, b"x"),
                 frame(WINDOW, 0xFFFF, 9, 0))
        scene.sleep(0 if is_past else 0.05)
        return sock, [(kinds[scene.sessions % len(kinds)], 1)]
    flood(scene, start)


# ---- clients of an agent that is hostile

def clients_and_streams(scene, count, buffers=0):
    """So many clients of the port that leads to us. Returns them, our session, and its streams."""
    sock = scene.session()
    clients = [wire.connect(scene.ports["evil"], buffers=buffers) for _ in range(count)]
    scene.leaving += clients
    streams = []
    while len(streams) < count:
        kind, flags, stream, _, _ = wire.read_frame(sock)
        if flags & SYN and kind != PING:
            streams.append(stream)
    return clients, sock, streams


def fill(scene, clients):
    """Sends until nothing more is taken."""
    poll, data = select.poll(), bytes(BLOCK)
    by_fd = {c.fileno(): c for c in clients}
    for c in clients:
        c.setblocking(False)
        poll.register(c, select.POLLOUT)
    while not scene.is_over():
        for fd, event in poll.poll(100):
            try:
                scene.sent += by_fd[fd].send(data)
            except OSError:
                poll.unregister(fd)


def takes_nothing(scene, is_past):
    """An agent that takes streams, gives credit, and does not read what its clients send."""
    clients, sock, streams = clients_and_streams(scene, 1000 if is_past else 200, 65536)
    scene.leaving.append(sock)
    scene.sessions += 1
    for stream in streams:
        sock.sendall(frame(WINDOW, ACK, stream, 1 << 30))
    fill(scene, clients)


def clients_stop(scene, is_past):
    """An agent that fills the windows of streams whose clients do not read: at most 64 MiB."""
    count = 1200 if is_past else 900
    clients, sock, streams = clients_and_streams(scene, count, 4096)
    scene.leaving.append(sock)
    scene.sessions += 1
    body = bytes(WINDOW_BYTES)
    try:
        for stream in streams:
            push(scene, sock, frame(WINDOW, ACK, stream, 0) +
                 frame(DATA, 0, stream, len(body), body), True)
            scene.sent += 2
        scene.wait(sock)
    except OSError:
        scene.ended += 1


def never_answers(scene, is_past):
    """An agent that answers no dial; clients that were refused come back."""
    scene.leaving.append(scene.session())
    scene.sessions += 1
    hold(scene, "evil", CROWD if is_past else 4000)


# ---- connections

def hold(scene, port, count, hello=b"", drip=b""):
    """Keeps so many connections open; whoever is cut off comes back. They say hello, and then a
    byte now and then."""
    poll, socks, sources = select.epoll(), {}, itertools.cycle(range(2, 52))
    host, _, number = scene.ports[port].rpartition(":")

    def come():
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        sock.setblocking(False)
        sock.bind((f"127.0.0.{next(sources)}", 0))
        if sock.connect_ex((host, int(number))) not in (0, errno.EINPROGRESS):
            sock.close()
            return
        socks[sock.fileno()] = sock
        scene.sent += 1
        poll.register(sock, select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)

    def say(sock, data):
        try:
            sock.send(data)
        except OSError:
            pass

    next_drip = time.monotonic() + 0.2
    while not scene.is_over():
        for _ in range(min(200, count - len(socks))):
            come()
        for fd, event in poll.poll(0 if len(socks) < count else 0.02, 1000):
            if event & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                scene.ended += 1
                poll.unregister(fd)
                socks.pop(fd).close()
            elif event & select.EPOLLOUT and hello:
                say(socks[fd], hello)
        if drip and time.monotonic() > next_drip:
            next_drip += 0.5
            for sock in list(socks.values()):
                say(sock, drip)
    scene.held = len(socks)
    scene.leaving += socks.values()


def crowd(port, at_limit, hello=b"", drip=b""):
    return lambda scene, is_past: hold(scene, port, CROWD if is_past else at_limit, hello, drip)


def guesses(scene, is_past):
    """Wrong secrets, from several addresses and for several names."""
    for i in itertools.count():
        if scene.is_over():
            return
        try:
            scene.sent += 1
            sock = wire.connect(scene.ports["agents"], f"127.0.0.{2 + i % 50}")
            scene.leaving.append(sock)
            sock.sendall(wire.request(f"evil-{i % 300}", f"guess-{i}"))
            wire.read_head(sock)
        except OSError:
            scene.ended += 1
        scene.let_go(100)
        scene.sleep(0 if is_past else 0.5)


def aborts(scene, is_past):
    """A good handshake that ends after each number of bytes, by RST or FIN."""
    whole = wire.request("evil", scene.token)
    for i in itertools.count():
        if scene.is_over():
            return
        try:
            sock = wire.connect(scene.ports["agents"])
            scene.leaving.append(sock)
            sock.sendall(whole[:i % (len(whole) + 1)])
            if i % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            scene.sent += 1
        except OSError:
            scene.ended += 1
        scene.let_go(0)
        scene.sleep(0 if is_past else 0.01)


def replacements(scene, is_past):
    """One instance that registers again and again; each session replaces the one before."""
    while not scene.is_over():
        try:
            sock = wire.register(scene.ports["agents"], "evil", scene.token, "host.1")
            scene.leaving.append(sock)
            scene.sent += 1
        except OSError:
            scene.ended += 1
        scene.let_go(64)
        scene.sleep(0 if is_past else 0.1)


def squatters(scene, is_past):
    """One credential, as many names as it may have, and then more."""
    count, mine = 2000 if is_past else scene.most_names, collections.deque()
    for i in range(count):
        if scene.is_over():
            return
        try:
            mine.append(wire.register(scene.ports["agents"], f"evil-{i}", scene.token))
            scene.sent += 1
        except OSError:
            scene.ended += 1
    scene.leaving += mine
    scene.held = len(mine)
    scene.wait(None)


def rude_proxy(scene, is_past):
    """Lets the agent in and ends the session at once, or says it is going away for ever."""
    while not scene.is_over():
        try:
            sock = scene.session()
            scene.sessions += 1
            if is_past:
                sock.close()
            else:
                sock.sendall(frame(GOAWAY, 0, 0, random.choice((0, 1, 2, 3, 0xFFFFFFFF))))
                scene.leaving.append(sock)
        except OSError:
            scene.ended += 1


SOCKS_HELLO = b"\x05\x01"
HTTP_HELLO = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
SESSIONS = 64  # of one identity

ATTACKS = [
    Attack("P2", "silent connections to the agents' port", "proxy", crowd("agents", PENDING - 1),
           memory(pending=9 * PENDING)),
    Attack("P2", "silent connections to an exposed port", "proxy", crowd("silent", 2000),
           memory(streams=CROWD, clients=CROWD)),
    Attack("P2", "silent connections to --connect", "proxy", crowd("--connect", 2000),
           memory(clients=CROWD)),
    Attack("P2", "silent connections to --socks5", "proxy", crowd("--socks5", 2000, SOCKS_HELLO),
           memory(clients=CROWD)),
    Attack("P2", "silent connections to --sni", "proxy", crowd("--sni", 2000),
           memory(clients=CROWD)),
    Attack("P2", "silent connections to --http", "proxy", crowd("--http", 2000),
           memory(clients=CROWD)),
    Attack("P2", "silent connections to --admin", "proxy", crowd("--admin", 100),
           memory(clients=CROWD)),
    Attack("P2", "silent connections to --forward", "agent", crowd("--forward", 2000),
           memory(streams=CROWD, clients=CROWD), options=("--allow", "192.0.2.1:*")),
    Attack("P1", "heads that drip, agents' port", "proxy",
           crowd("agents", PENDING - 1, b"GET /revdial HTTP/1.1\r\nX: ", b"x"),
           memory(pending=9 * PENDING)),
    Attack("P1", "heads that drip, --http", "proxy", crowd("--http", 2000, HTTP_HELLO, b"x"),
           memory(clients=CROWD)),
    Attack("P8", "wrong secrets", "proxy", guesses, memory(pending=PENDING)),
    Attack("P14", "handshakes that are broken off", "proxy", aborts, memory(pending=PENDING)),
    Attack("B1", "streams of an agent that say nothing", "proxy", silent_opens,
           memory(sessions=LEFT, streams=2 * STREAMS["proxy"]), is_survived=True, is_ended=True),
    Attack("B2", "clients of an agent that does not read", "proxy", takes_nothing,
           memory(sessions=2, streams=1000, clients=1000)),
    Attack("B2", "an agent of clients that do not read", "proxy", clients_stop,
           memory(sessions=2, streams=1200, clients=1200, unread=SESSION_WINDOW)),
    Attack("B2", "an agent that answers no dial", "proxy", never_answers,
           memory(sessions=2, streams=CROWD, clients=CROWD)),
    Attack("B3", "garbage", "proxy", garbage, memory(sessions=LEFT, streams=64), is_ended=True),
    Attack("B7", "an instance that replaces itself", "proxy", replacements, memory(sessions=66)),
    Attack("B9", "one credential, 2,000 names", "proxy", squatters, memory(sessions=SESSIONS)),
    Attack("CVE-2023-44487", "rapid reset", "proxy", rapid_reset,
           memory(sessions=LEFT, streams=2 * STREAMS["proxy"]), is_survived=True, is_ended=True,
           options=("--allow", "192.0.2.1:*")),
    Attack("CVE-2019-9512", "pings, writes blocked", "proxy", pings, memory(sessions=LEFT)),
    Attack("CVE-2019-9518", "empty data, writes blocked", "proxy", empty_data,
           memory(sessions=LEFT, streams=64), is_survived=True, is_ended=True),
    Attack("CVE-2019-9518", "empty window updates", "proxy", empty_windows,
           memory(sessions=LEFT, streams=64), is_survived=True, is_ended=True),
    Attack("CVE-2019-9511", "credit of one byte at a time", "proxy", tiny_windows,
           memory(sessions=LEFT, streams=64), is_survived=True, is_ended=True),
    Attack("CVE-2019-9511", "data of one byte that nobody reads", "proxy", tiny_data,
           memory(sessions=LEFT, streams=64, unread=2 * WINDOW_BYTES), is_survived=True,
           is_ended=True),
    Attack("C15", "GoAways", "proxy", goaways, memory(sessions=LEFT), is_survived=True),
    Attack("CVE-2023-44487", "rapid reset", "agent", rapid_reset,
           memory(sessions=LEFT, streams=STREAMS["agent"]), is_survived=True, is_ended=True),
    Attack("CVE-2025-8671", "MadeYouReset, writes blocked", "agent", made_you_reset,
           memory(sessions=LEFT, streams=STREAMS["agent"]), is_ended=True),
    Attack("X2", "65,536 half-open streams", "agent", half_open,
           memory(sessions=LEFT, streams=STREAMS["agent"])),
    Attack("X2", "dials to a target that does not answer", "agent", unanswered_dials,
           memory(sessions=2, streams=STREAMS["agent"])),
    Attack("X2", "dials of names in dead zones", "agent", dead_zones,
           memory(sessions=2, streams=STREAMS["agent"]), gone=12),
    Attack("B2", "a proxy that does not read", "agent", slow_reader,
           memory(sessions=2, streams=1000)),
    Attack("B2", "a proxy whose targets do not read", "agent", unread_uploads,
           memory(sessions=2, streams=1200, unread=SESSION_WINDOW)),
    Attack("CVE-2019-9512", "pings, writes blocked", "agent", pings, memory(sessions=LEFT)),
    Attack("CVE-2019-9518", "empty data, writes blocked", "agent", empty_data,
           memory(sessions=LEFT, streams=64), is_survived=True, is_ended=True),
    Attack("CVE-2019-9511", "credit of one byte at a time", "agent", tiny_windows,
           memory(sessions=LEFT, streams=64), is_survived=True, is_ended=True),
    Attack("B3", "garbage", "agent", garbage, memory(sessions=LEFT, streams=64), is_ended=True),
    Attack("X4", "sessions that end at once", "agent", rude_proxy, memory(sessions=LEFT)),
]
