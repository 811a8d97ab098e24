"""The runner's end of a session, frame by frame, and the process at the other end of it."""
import base64
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import time

DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
TOKEN = 'interop-token'
PATIENCE = 10  # seconds for anything that has to happen
LOCAL = '127.0.0.1'


class Silent(Exception):
    """What was waited for did not happen."""


class Socket:
    """A socket that is read while others are waited for, and what became of it."""

    def __init__(self, sock):
        self.sock = sock
        self.bytes = b''
        self.is_eof = self.is_reset = self.has_finished = False
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def take(self):
        if self.is_reset:
            return  # the error has been read, and EOF would follow
        try:
            got = self.sock.recv(1 << 20)
            self.bytes += got
            self.is_eof = self.is_eof or not got
        except BlockingIOError:
            pass
        except OSError:
            self.is_reset = True
        # After EOF only a reset hangs up a socket whose own direction is still open.
        poll = select.poll()
        poll.register(self.sock, 0)
        if self.is_eof and not self.has_finished and poll.poll(0):
            self.is_reset = True

    def is_over(self):
        return self.is_eof or self.is_reset

    def send(self, data):
        until = time.monotonic() + PATIENCE
        while data:
            select.select([], [self.sock], [], max(0, until - time.monotonic()))
            try:
                data = data[self.sock.send(data):]
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Silent('the peer does not read')
            except OSError:
                self.is_reset = True
                return

    def finish(self):
        self.has_finished = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.is_reset = True

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()

    def close(self):
        self.sock.close()


class Raw:
    """The carrier that adds nothing."""

    def packed(self, data):
        return data

    def unpacked(self, data):
        """What is in it, what is not complete, and what has to be answered."""
        return data, b'', b''


class WebSocket:
    """RFC 6455: each send is a message; what comes must be as section 5 has it."""

    def __init__(self, is_client):
        self.is_client = is_client
        self.is_in_message = False

    def packed(self, data, opcode=2):
        count = len(data)
        size = bytes([count]) if count < 126 else struct.pack(
            '>BH' if count < 65536 else '>BQ', 126 if count < 65536 else 127, count)
        if not self.is_client:
            return bytes([0x80 | opcode]) + size + data
        key = os.urandom(4)
        return bytes([0x80 | opcode, 0x80 | size[0]]) + size[1:] + key + masked(data, key)

    def unpacked(self, data):
        inside, answers = b'', b''
        while (frame := self.first_frame(data)) is not None:
            first, body, data = frame
            opcode = first & 15
            if opcode < 8:
                self.check(opcode == (0 if self.is_in_message else 2), 'opcode %d' % opcode)
                self.is_in_message = not first & 0x80
                inside += body
            elif opcode in (8, 9):  # Close comes back as it came, and Ping as Pong
                answers += self.packed(body, 8 if opcode == 8 else 10)
            self.check(opcode < 8 or first & 0x80 and len(body) < 126, 'a control frame')
            self.check(first & 0x70 == 0 and opcode in (0, 2, 8, 9, 10), 'a reserved bit')
        return inside, data, answers

    def first_frame(self, data):
        """Its first byte, its payload and what follows, or None if it is not complete."""
        if len(data) < 2:
            return None
        count, at = data[1] & 127, 2
        more = {126: 2, 127: 8}.get(count, 0)
        key_len = 0 if self.is_client else 4
        if len(data) < at + more + key_len:
            return None
        self.check(bool(data[1] & 0x80) != self.is_client, 'the mask')
        if more:
            count, at = int.from_bytes(data[at:at + more], 'big'), at + more
            self.check(count > (125 if more == 2 else 65535), 'the form of a length')
        key, at = data[at:at + key_len], at + key_len
        if len(data) < at + count:
            return None
        body = data[at:at + count]
        return data[0], masked(body, key) if key else body, data[at + count:]

    def check(self, is_fine, what):
        if not is_fine:
            raise Silent('%s of a WebSocket frame is not as it must be' % what)


def masked(data, key):
    count = len(data)
    mask = (key * (count // 4 + 1))[:count]
    return (int.from_bytes(data, 'big') ^ int.from_bytes(mask, 'big')).to_bytes(count, 'big')


class Session(Socket):
    """A connection to the peer after the upgrade. Answers its pings, and keeps its frames."""

    def __init__(self, sock, rest=b'', carrier=None):
        super().__init__(sock)
        self.bytes = rest
        self.carrier = carrier or Raw()
        self.inside = b''
        self.frames = []
        self.goaway = None
        self.pings = 0

    def send(self, data):
        super().send(self.carrier.packed(data))

    def frame(self, kind, flags, stream, length=0, body=b''):
        self.send(struct.pack('>BBHII', 0, kind, flags, stream, length or len(body)) + body)

    def take(self):
        super().take()
        inside, self.bytes, answers = self.carrier.unpacked(self.bytes)
        self.inside += inside
        if answers and not self.has_finished:
            super().send(answers)
        while len(self.inside) >= 12:
            version, kind, flags, stream, length = struct.unpack('>BBHII', self.inside[:12])
            end = 12 + (length if kind == DATA else 0)
            if len(self.inside) < end:
                break
            body, self.inside = self.inside[12:end], self.inside[end:]
            self.frames.append((kind, flags, stream, length, body))
            if kind == PING and flags & SYN:
                self.frame(PING, ACK, 0, length)
            elif kind == GOAWAY and self.goaway is None:
                self.goaway = length

    def of(self, stream, since=0):
        return [f for f in self.frames[since:] if f[2] == stream and f[0] in (DATA, WINDOW)]

    def data_of(self, stream, since=0):
        return b''.join(f[4] for f in self.of(stream, since))

    def has_flag(self, stream, flag, since=0):
        return any(f[1] & flag for f in self.of(stream, since))

    def has_pong(self, value):
        return any(f[0] == PING and f[1] & ACK and f[3] == value for f in self.frames)

    def how_it_ended(self):
        if not self.is_over() and not self.goaway:
            return None
        return 'closed' if self.goaway is None else 'GA%d' % self.goaway


def wait(sockets, is_done, seconds=PATIENCE, what=''):
    """Reads all sockets until is_done() is true."""
    until = time.monotonic() + seconds
    while True:
        for s in sockets:
            if s.sock.fileno() >= 0:
                s.take()
        if is_done():
            return
        left = until - time.monotonic()
        if left <= 0:
            raise Silent(what or 'nothing happened')
        open_ones = [s.sock for s in sockets if s.sock.fileno() >= 0 and not s.is_over()]
        select.select(open_ones, [], [], min(left, 0.05))


def listen():
    sock = socket.create_server((LOCAL, 0), backlog=512)
    sock.settimeout(PATIENCE)
    return sock


def address_of(sock):
    return '%s:%d' % sock.getsockname()[:2]


def connect(address):
    host, port = address.rsplit(':', 1)
    return socket.create_connection((host, int(port)), PATIENCE)


def read_head(sock):
    """Reads to the end of an HTTP head. Returns it and what came behind it."""
    sock.settimeout(PATIENCE)
    data = b''
    while b'\r\n\r\n' not in data:
        more = sock.recv(4096)
        if not more:
            raise Silent('the connection ended in the upgrade: %r' % data)
        data += more
    head, rest = data.split(b'\r\n\r\n', 1)
    return head.decode('latin-1'), rest


def accept_of(key):
    """RFC 6455, section 4.2.2"""
    guid = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
    return base64.b64encode(hashlib.sha1((key + guid).encode()).digest()).decode()


def field_of(head, name):
    for line in head.split('\r\n')[1:]:
        key, _, value = line.partition(':')
        if key.lower() == name.lower():
            return value.strip()
    return ''


def ask_upgrade(sock, address, carrier='raw'):
    """The upgrade from the side of a backend. Returns what came behind it, and the carrier."""
    key = base64.b64encode(os.urandom(16)).decode()
    how = {'raw': 'Upgrade: revdial',
           'ws': 'Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n'
                 'Sec-WebSocket-Protocol: revdial' % key}[carrier]
    head = ('GET /revdial HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\n%s\r\n'
            'Authorization: Bearer %s\r\nRevdial-Name: peer\r\n\r\n' % (address, how, TOKEN))
    sock.sendall(head.encode())
    head, rest = read_head(sock)
    if not head.startswith('HTTP/1.1 101'):
        raise Silent('the proxy answered %s' % head.split('\r\n')[0])
    if carrier == 'raw':
        return rest, Raw()
    if field_of(head, 'Sec-WebSocket-Accept') != accept_of(key):
        raise Silent('the proxy did not read the key')
    return rest, WebSocket(is_client=True)


def answer_upgrade(sock, carrier='raw'):
    """The same from the side of a proxy."""
    head, rest = read_head(sock)
    lines = 'Upgrade: revdial'
    if field_of(head, 'Upgrade').lower() != {'raw': 'revdial', 'ws': 'websocket'}[carrier]:
        raise Silent('the backend wants another carrier: %r' % head)
    if carrier == 'ws':
        lines = ('Upgrade: websocket\r\nSec-WebSocket-Protocol: revdial\r\n'
                 'Sec-WebSocket-Accept: ' + accept_of(field_of(head, 'Sec-WebSocket-Key')))
    sock.sendall(('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n%s\r\n\r\n'
                  % lines).encode())
    return rest, Raw() if carrier == 'raw' else WebSocket(is_client=False)


class Program:
    """A child process. It says where it listens, a line for each place: 'listening on ADDRESS'."""

    def __init__(self, command, log):
        env = {k: v for k, v in os.environ.items() if not k.startswith('REVDIAL_')}
        env['REVDIAL_TOKEN'] = TOKEN
        self.log = open(log, 'ab')
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log, env=env)

    def listens(self, seconds=60):
        """Where it says that it listens, the next line of these."""
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        line = ''
        while not line.startswith('listening on '):
            if not poll.poll(seconds * 1000):
                raise Silent('%s does not say where it listens' % self.process.args[0])
            line = self.read_line()
            if not line:
                raise Silent('%s ended: see %s' % (self.process.args[0], self.log.name))
        return line.split()[2]

    def read_line(self):
        line = b''
        while not line.endswith(b'\n'):
            more = os.read(self.process.stdout.fileno(), 1)
            if not more:
                break
            line += more
        return line.decode('latin-1')

    def signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds=PATIENCE):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self):
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
