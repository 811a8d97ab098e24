"""A session between revdial and another library, and the two ends of the streams in it."""
import os
import select
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'yamuxspec'))
from wire import (ACK, DATA, LOCAL, PATIENCE, PING, SYN, WINDOW, Program, Silent,  # noqa: E402
                  address_of, connect, listen)

BUILD = os.environ.get('REVDIAL_BUILD', 'build')
LINGER_NOT = struct.pack('ii', 1, 0)


class Link:
    """Their program and ours, joined by a session on a carrier (raw or ws). The role is theirs.

    A client of the proxy and what the backend connects to are the two ends of a stream: `ours` is
    the end that our program serves, `theirs` the one that their relay serves.
    """

    def __init__(self, library, role, carrier, **options):
        self.library, self.role, self.carrier, self.options = library, role, carrier, options
        self.ours = self.theirs = self.tap = None
        self.target = listen()
        self.ends = []
        self.tags = 0

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *why):
        self.end()

    def url(self, address):
        if 'slice' in self.options:
            self.tap = Tap(address, self.options['slice'], self.carrier)
            address = self.tap.address
        return '%s://%s/revdial' % ('http' if self.carrier == 'raw' else 'ws', address)

    def their_program(self, *words):
        command = self.library.command + list(words) + [self.options.get('features', '')]
        return Program(command, os.path.join(BUILD, 'interop', 'theirs.log'))

    def our_program(self, name, *words):
        keepalive = ['--keepalive', '300ms'] if 'slice' in self.options else []
        command = [os.path.join(BUILD, name)] + list(words) + keepalive
        return Program(command, os.path.join(BUILD, 'interop', 'ours.log'))

    def start(self):
        target = address_of(self.target)
        if self.role == 'backend':
            self.ours = self.our_program('revdial-proxy', '--listen', LOCAL + ':0',
                                         '--expose', LOCAL + ':0=peer')
            server, self.clients = self.ours.listens(), self.ours.listens()
            self.theirs = self.their_program('backend', self.url(server), target)
            self.await_backend()
            return
        self.theirs = self.their_program('proxy', 'http' if self.carrier == 'raw' else 'ws')
        server, self.clients = self.theirs.listens(), self.theirs.listens()
        self.ours = self.our_program('revdial-agent', '--server', self.url(server),
                                     '--name', 'peer', '--target', target)
        self.finish(*self.pair())

    def finish(self, ours, theirs):
        """Ends a stream, so that it counts no more."""
        for end in (ours, theirs):
            finish(end)
        for end in (ours, theirs):
            if ending(end) != 'EOF':
                raise Fault('no stream ends')

    def await_backend(self):
        """Clients are refused until the backend has registered."""
        until = time.monotonic() + 60
        while True:
            if self.theirs.process.poll() is not None:
                raise Silent('their program ended: see %s' % self.theirs.log.name)
            pair = self.try_pair(PATIENCE)
            if pair:
                break
            if time.monotonic() > until:
                raise Silent('their backend does not come')
            time.sleep(0.02)
        self.finish(*pair)

    def client(self):
        client = connect(self.clients)
        self.ends.append(client)
        client.settimeout(PATIENCE)
        return client

    def try_pair(self, seconds):
        """The two ends of a new stream, (ours, theirs), or None if it is refused."""
        self.tags += 1
        tag = b'%8d' % self.tags
        until = time.monotonic() + seconds
        try:
            client = self.client()
            client.sendall(tag)
            while True:
                left = max(0, until - time.monotonic())
                ready = select.select([client, self.target], [], [], left)[0]
                if self.target in ready:
                    end = self.target.accept()[0]
                    self.ends.append(end)
                    end.settimeout(PATIENCE)
                    if exactly(end, 8) == tag:
                        return (client, end) if self.role == 'backend' else (end, client)
                    end.close()  # of a client that did not wait for it
                elif client in ready:
                    return None
                else:
                    raise Fault('waits')
        except ConnectionError:
            return None

    def pair(self):
        pair = self.try_pair(PATIENCE)
        if not pair:
            raise Fault('no stream')
        return pair

    def end(self):
        for program in (self.ours, self.theirs):
            if program:
                program.end()
        for end in self.ends + [self.target]:
            end.close()
        if self.tap:
            self.tap.close()


class Fault(Exception):
    """What went otherwise than in a job that goes well: a word of it is the job's outcome."""


def exactly(end, count):
    data = bytearray()
    while len(data) < count:
        try:
            more = end.recv(min(count - len(data), 1 << 20))
        except socket.timeout:
            raise Fault('hangs')
        except ConnectionError:
            raise Fault('reset')
        if not more:
            raise Fault('EOF')
        data += more
    return bytes(data)


def ending(end):
    """How the bytes of a stream end: EOF, reset or hangs. What comes before is dropped."""
    try:
        while end.recv(1 << 20):
            pass
        return 'EOF'
    except socket.timeout:
        return 'hangs'
    except ConnectionError:
        return 'reset'


def finish(end):
    end.shutdown(socket.SHUT_WR)


def reset(end):
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    end.close()


def send(end, data):
    try:
        end.sendall(data)
    except socket.timeout:
        raise Fault('hangs')
    except ConnectionError:
        raise Fault('reset')


class Tap:
    """Relays one connection in slices of so many bytes (0: as they come), and counts its pings.

    The heads of the upgrade pass whole: tungstenite takes a request in many pieces for an attack.
    """

    def __init__(self, address, size, carrier):
        self.upstream, self.size = address, size
        self.listener = listen()
        self.address = address_of(self.listener)
        self.sockets = [self.listener]
        self.pings = {'up': set(), 'down': set()}
        self.pongs = {'up': set(), 'down': set()}
        self.acks = 0  # of streams, either way
        self.carrier = carrier
        self.last = None  # how each way ends with its next piece: FIN or RST
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        try:
            down = self.listener.accept()[0]
        except OSError:
            return
        up = connect(self.upstream)
        for s in (down, up):
            s.setblocking(True)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets += [down, up]
        for source, sink, way in ((down, up, 'up'), (up, down, 'down')):
            threading.Thread(target=self.relay, args=(source, sink, way), daemon=True).start()

    def relay(self, source, sink, way):
        frames = Frames(self.carrier, lambda *frame: self.see(way, *frame))
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if self.last:
                    self.end_way(source, sink, data)
                    return
                step = self.size if frames.is_behind_head and self.size else len(data)
                frames.feed(data)
                for at in range(0, len(data), step):
                    sink.sendall(data[at:at + step])
        except OSError:
            for s in (source, sink):
                s.close()

    def end_way(self, source, sink, data):
        """In the middle of a frame, as far as that can be known."""
        sink.sendall(data[:len(data) // 2 | 1])
        if self.last == 'FIN':
            sink.shutdown(socket.SHUT_WR)
            return
        for s in (source, sink):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            s.shutdown(socket.SHUT_RD)  # a thread that reads it would keep it open
            s.close()

    def see(self, way, kind, flags, value):
        if kind in (DATA, WINDOW) and flags & ACK:
            self.acks += 1
        elif kind == PING:
            (self.pings if flags & SYN else self.pongs)[way].add(value)

    def answered(self, way):
        """Pings that went this way, and whose pongs came back."""
        return self.pings[way] & self.pongs['down' if way == 'up' else 'up']

    def close(self):
        for s in self.sockets:
            s.close()


class Frames:
    """Finds the yamux frames in one direction of a connection, behind the HTTP head."""

    def __init__(self, carrier, see):
        self.see = see
        self.reader = self.read_socket() if carrier == 'ws' else self.read_yamux()
        self.is_behind_head = False
        self.buffer = b''
        self.payload = b''

    def feed(self, data):
        self.buffer += data
        if not self.is_behind_head:
            if b'\r\n\r\n' not in self.buffer:
                return
            self.buffer = self.buffer.split(b'\r\n\r\n', 1)[1]
            self.is_behind_head = True
        next(self.reader)

    def read_yamux(self):
        """Takes frames off the buffer, as far as it goes."""
        while True:
            data, self.buffer = self.buffer, b''
            self.take(data)
            yield

    def take(self, data):
        self.payload += data
        while len(self.payload) >= 12:
            _, kind, flags, _, length = struct.unpack('>BBHII', self.payload[:12])
            size = 12 + (length if kind == 0 else 0)
            if len(self.payload) < size:
                return
            self.payload = self.payload[size:]
            self.see(kind, flags, length)

    def read_socket(self):
        """Takes frames of RFC 6455 off the buffer, unmasks them, and what is in them is yamux."""
        while True:
            while True:
                size = self.frame_size()
                if size is None or len(self.buffer) < size[0] + size[1]:
                    break
                head, count, is_masked = size
                body = self.buffer[head:head + count]
                if is_masked:
                    mask = self.buffer[head - 4:head] * (count // 4 + 1)
                    number = int.from_bytes(body, 'big') ^ int.from_bytes(mask[:count], 'big')
                    body = number.to_bytes(count, 'big')
                is_data = self.buffer[0] & 15 < 8
                self.buffer = self.buffer[head + count:]
                if is_data:
                    self.take(body)
            yield

    def frame_size(self):
        """How long head and payload are, and whether it is masked; None if they are not here."""
        if len(self.buffer) < 2:
            return None
        count, more = self.buffer[1] & 127, 0
        if count > 125:
            more = 2 if count == 126 else 8
            if len(self.buffer) < 2 + more:
                return None
            count = int.from_bytes(self.buffer[2:2 + more], 'big')
        is_masked = self.buffer[1] >> 7
        return 2 + more + 4 * is_masked, count, is_masked
