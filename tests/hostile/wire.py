"""The protocol in bytes, as the ends that misbehave speak it (tests/vectors/README.md)."""
import random
import select
import socket
import struct

DATA, WINDOW, PING, GOAWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_BYTES = 65536  # first credit of a stream, as the features below announce it
FEATURES = "rstcode, preamble, drain, promptack, pings, window=65536, streams=65536"
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close() is a reset
HEADER = struct.Struct(">BBHII")


def frame(kind, flags, stream, length, payload=b""):
    return HEADER.pack(0, kind, flags, stream, length) + payload


def preamble(target):
    """PROXY protocol version 2: from 192.0.2.1 to 192.0.2.2, and the target as authority."""
    text = target.encode()
    body = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + struct.pack(">HH", 1000, 2000)
    body += struct.pack(">BH", 2, len(text)) + text
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack(">BBH", 0x21, 0x11, len(body)) + body


def opening(stream, target):
    head = preamble(target)
    return frame(WINDOW, SYN, stream, 0) + frame(DATA, 0, stream, len(head), head)


def connect(address, source="127.0.0.2", buffers=0, timeout=20):
    """From another address than the honest ones, with an end that is a reset."""
    sock = socket.socket(socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    if buffers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    sock.settimeout(timeout)
    try:
        sock.bind((source, 0))
        host, _, port = address.rpartition(":")
        sock.connect((host, int(port)))
    except OSError:
        sock.close()
        raise
    return sock


def read_head(sock):
    """Byte by byte: what comes after the head is somebody else's."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError(f"the head ended after {head!r}")
        head += byte
    return head.decode("latin-1")


def request(name, token, instance=None):
    lines = ["GET /revdial HTTP/1.1", "Host: proxy", "Connection: Upgrade", "Upgrade: revdial",
             "Revdial-Version: 1", f"Revdial-Features: {FEATURES}", f"Revdial-Name: {name}",
             f"Revdial-Instance: {instance or f'host.{random.getrandbits(48):x}'}",
             f"Authorization: Bearer {token}", "", ""]
    return "\r\n".join(lines).encode()


def register(address, name, token, instance=None, **how):
    """A backend's session: what follows the 101 are frames."""
    sock = connect(address, **how)
    try:
        sock.sendall(request(name, token, instance))
        head = read_head(sock)
        if " 101 " not in head:
            raise ConnectionError(head.splitlines()[0])
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener):
    """A proxy's session with an agent that has connected."""
    sock, _ = listener.accept()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    try:
        read_head(sock)
        sock.sendall("\r\n".join((
            "HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: revdial",
            "Revdial-Version: 1", f"Revdial-Features: {FEATURES}",
            f"Revdial-Session: {random.getrandbits(64):016x}", "", "")).encode())
    except OSError:
        sock.close()
        raise
    return sock


def has_more(sock, seconds):
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("the end")
        data += more
    return data


def read_frame(sock):
    """(kind, flags, stream, length, payload)"""
    _, kind, flags, stream, length = HEADER.unpack(read_exactly(sock, HEADER.size))
    return kind, flags, stream, length, read_exactly(sock, length) if kind == DATA else b""
