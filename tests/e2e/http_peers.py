#!/usr/bin/env python3
"""An origin for --http, and clients that say exactly what they are told.

    http_peers.py origin                    prints "http PORT", serves until it is ended
    http_peers.py who NAME FILE             the same, and answers with its name; while FILE says
                                            "unwell" /health gets 503, while it says "sick" all do,
                                            while it says "hints" /health gets 103 twice before
    http_peers.py raw ADDRESS TEXT...       sends each TEXT (with \\r and \\n); prints what comes
    http_peers.py keep ADDRESS HOST NAME    a connection whose first request NAME has answered: who
                                            answers the next, once a line has come
    http_peers.py websocket ADDRESS HOST    an upgrade, and messages back and forth
    http_peers.py events ADDRESS HOST       each event must be there before the next is sent for
    http_peers.py vanish ADDRESS HOST       three requests whose client resets its connection: in
                                            the body, in the response, and after an upgrade
    http_peers.py pauses ADDRESS HOST       bodies and a tunnel go on after a pause, which a line
                                            ends; a head and a response that do not come are late.
                                            Another line: what one side has finished is cut by now
    http_peers.py last ADDRESS HOST LOG     responses of many lengths that nobody reads. At a line
                                            it leaves those that LOG does not have as complete; at
                                            another it reads the rest: how many are whole?
    http_peers.py ends ADDRESS HOST         prints how tunnels and a response without a length end
    http_peers.py drain ADDRESS HOST ORIGIN LOG
                                            what becomes of a kept connection whose request is half
                                            there when a proxy drains; and of two whose responses
                                            begin or end once the agent is told, as its LOG says
    http_peers.py statuses ADDRESS FILE     what each message of a corpus is answered with
    http_peers.py late ADDRESS HOST         how much of a response and of a tunnel comes, and how
                                            they end, if the target resets behind 100,000 bytes
    http_peers.py cut ADDRESS HOST          is a response that was cut seen as one? Reads a line
                                            before it asks, and when the backend has been killed
"""
import base64
import fcntl
import hashlib
import os
import re
import select
import socket
import struct
import sys
import termios
import threading
import time

LARGE = 1 << 25  # more than all buffers on the way
LATE = 100000    # they take it
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


# ---- the origin ----

class Request:
    def __init__(self, line, fields):
        self.method, self.path, _ = line.split(" ", 2)
        self.fields = fields

    def get(self, name):
        return self.fields.get(name.lower(), "")


def read_request(f):
    line = f.readline()
    if not line:
        return None
    fields = {}
    while True:
        text = f.readline().decode("latin-1").rstrip("\r\n")
        if not text:
            return Request(line.decode("latin-1").rstrip("\r\n"), fields)
        name, value = text.split(":", 1)
        name = name.lower()
        fields[name] = fields[name] + ", " + value.strip() if name in fields else value.strip()


def read_body(f, request):
    """Its bytes, and its trailers."""
    if request.get("transfer-encoding") == "chunked":
        while True:
            size = int(f.readline().split(b";")[0], 16)
            if size == 0:
                break
            yield f.read(size)
            f.readline()
        while True:
            line = f.readline().strip()
            if not line:
                return
            request.fields["trailer:" + line.split(b":")[0].decode().lower()] = line.decode()
    left = int(request.get("content-length") or 0)
    while left > 0:
        data = f.read(min(left, 65536))
        if not data:
            raise OSError("the body is cut")
        left -= len(data)
        yield data


def answer(s, body, status="200 OK", more=""):
    s.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body)


def websocket(s, f, request):
    key = base64.b64encode(hashlib.sha1(request.get("sec-websocket-key").encode() + GUID).digest())
    s.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
              b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n")
    while True:  # it echoes bytes, masked as they are: the client takes them for what it sent
        data = f.read1(65536)
        if not data:
            s.shutdown(socket.SHUT_WR)
            return
        s.sendall(data)


def serve_one(s, f, request):
    """Returns whether the connection persists."""
    digest, count = hashlib.sha256(), 0
    if request.get("expect") == "100-continue" and request.path != "/refuse":
        s.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if request.path in ("/silent", "/later"):
        served["waiting"] += 1
    if request.path == "/later":
        served["later"].acquire()
        served["waiting"] -= 1
    if request.path == "/refuse":
        answer(s, b"no\n", "413 Content Too Large", "Connection: close\r\n")
        return False
    if request.path == "/websocket":
        websocket(s, f, request)
        return False
    for data in read_body(f, request):
        digest.update(data)
        count += len(data)
    if request.path in ("/sum", "/later"):
        answer(s, f"{digest.hexdigest()} {count}".encode())
    elif request.path == "/fields":
        text = "".join(f"{k}: {v}\n" for k, v in sorted(request.fields.items()))
        answer(s, text.encode())
    elif request.path == "/chunks":
        s.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                  b"6;a=b\r\nchunk \r\n5\r\nafter\r\n0\r\nX-Sum: 1\r\n\r\n")
    elif request.path == "/hints":
        s.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        answer(s, b"hinted")
    elif request.path == "/until-close":
        s.sendall(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
        return False
    elif request.path in ("/cut-length", "/cut-chunks", "/cut-close"):
        how = {"/cut-length": b"Content-Length: 100000\r\n", "/cut-close": b"Connection: close\r\n",
               "/cut-chunks": b"Transfer-Encoding: chunked\r\n"}[request.path]
        s.sendall(b"HTTP/1.1 200 OK\r\n" + how + b"\r\n5\r\nhello\r\n")
        f.read(1)  # until it is told to go on by its end
        return False
    elif request.path == "/cut-late":
        s.sendall((b"HTTP/1.1 101 Go on\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
                   if request.get("upgrade") else b"HTTP/1.0 200 OK\r\n\r\n") + bytes(LATE))
        while fcntl.ioctl(s, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            time.sleep(0.001)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        f.close()
        s.close()
        served["late"] += 1
        return False
    elif request.path == "/late":
        answer(s, str(served["late"]).encode())
    elif request.path == "/reset":
        s.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
        return False
    elif request.path == "/events":
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                  b"Transfer-Encoding: chunked\r\n\r\n")
        for i in range(3):
            served["events"].acquire()  # until the client has read the one before
            text = b"data: %d\n\n" % i
            s.sendall(b"%x\r\n%s\r\n" % (len(text), text))
        s.sendall(b"0\r\n\r\n")
    elif request.path == "/next-event":
        served["events"].release()
        answer(s, b"")
    elif request.path == "/large":
        data = os.urandom(LARGE)
        answer(s, data, more=f"X-Sum: {hashlib.sha256(data).hexdigest()}\r\n")
    elif request.path.startswith("/bytes/"):
        answer(s, bytes(int(request.path[len("/bytes/"):])))
    elif request.path == "/endless":
        s.sendall(b"HTTP/1.0 200 OK\r\n\r\nwithout an end")
        f.read(1)
        return False
    elif request.path == "/waiting":
        answer(s, str(served["waiting"]).encode())
    elif request.path == "/go-on":
        served["later"].release()
        answer(s, b"")
    elif request.path == "/once":  # the connection ends after it, and nobody is told
        answer(s, b"once")
        return False
    elif request.path == "/connections":
        answer(s, str(served["connections"]).encode())
    elif request.path == "/resets":
        answer(s, str(served["resets"]).encode())
    elif request.path == "/two-answers":
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
        s.sendall(one + b"mine" + one + b"next")
    elif request.path == "/bad":
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
    elif request.path == "/sloppy-length":
        s.sendall(b"HTTP/1.1 999 Odd\nContent-Length: 6\nContent-Length: 06\n\nsloppy")
    elif request.path == "/sloppy-chunks":
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                  b"6   \r\nsloppy\r\n0   \r\nX-Sum: 1\n\n")
    elif request.path == "/silent":
        f.read(1)
        return False
    else:
        answer(s, f"{request.method} {request.path} {request.get('host')}\n".encode()
               if request.method != "HEAD" else b"")
    return True


served = {"events": threading.Semaphore(0), "later": threading.Semaphore(0), "connections": 0,
          "resets": 0, "waiting": 0, "late": 0}


def serve(s):
    served["connections"] += 1
    f = s.makefile("rb")
    try:
        while True:
            request = read_request(f)
            if not request or not serve_one(s, f, request):
                break
    except ConnectionResetError:
        served["resets"] += 1
    except (OSError, ValueError):
        pass
    f.close()
    s.close()


def who(name, path):
    def answer_who(s, _, request):
        with open(path, encoding="ascii") as f:
            state = f.read().strip()
        is_bad = state == "sick" or (state == "unwell" and request.path == "/health")
        if state == "hints" and request.path == "/health":
            s.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2)
        answer(s, f"{name}\n".encode(), "503 Service Unavailable" if is_bad else "200 OK")
        return True

    global serve_one
    serve_one = answer_who
    origin()


def origin():
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print("http", listener.getsockname()[1], flush=True)
    while True:
        s, _ = listener.accept()
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(s,), daemon=True).start()


# ---- clients ----

def connect(address, window=0):
    host, port = address.rsplit(":", 1)
    s = socket.socket()
    s.settimeout(20)
    if window:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    s.connect((host, int(port)))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def unescape(text):
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def read_all(s):
    """What comes up to the end, and how it ends: "FIN" or "RST"."""
    got = b""
    try:
        while True:
            data = s.recv(65536)
            if not data:
                return got, "FIN"
            got += data
    except ConnectionResetError:
        return got, "RST"


def raw(address, *texts):
    s = connect(address)
    for text in texts:
        s.sendall(unescape(text))
    s.shutdown(socket.SHUT_WR)
    got, end = read_all(s)
    sys.stdout.write(got.decode("latin-1"))
    print(f"[{end}]")


def keep(address, host, name):
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def ask(s):
        s.sendall(request)
        got = b""
        while not got.endswith(b"\n") or got.endswith(b"\r\n"):
            data = s.recv(65536)
            if not data:
                sys.exit("it ended: %r" % got)
            got += data
        return got.split(b" ")[1].decode(), got.split(b"\n")[-2].decode()

    for _ in range(20):
        s = connect(address)
        if ask(s) == ("200", name):
            break
        s.close()
    print("kept", flush=True)
    sys.stdin.readline()
    print("then", *ask(s), flush=True)


def websocket_client(address, host):
    s = connect(address)
    early = b"\x81\x85maskhello"  # as nobody should; it goes after the 101
    s.sendall(b"GET /websocket HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: upgrade\r\n"
              b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
              b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + early)
    f = s.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += f.readline()
    ok = head.startswith(b"HTTP/1.1 101") and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    ok = ok and f.read(len(early)) == early
    total = 0
    for size in (1, 100, 70000, 1 << 20):
        data = os.urandom(size)
        sender = threading.Thread(target=s.sendall, args=(data,))
        sender.start()
        ok = ok and f.read(size) == data
        sender.join()
        total += size
    s.shutdown(socket.SHUT_WR)
    ok = ok and f.read() == b""
    print(f"{'same' if ok else 'other'} {total} bytes")


def vanish(address, host):
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    for line, more in (("PUT /sum", "Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"),
                       ("GET /cut-length", "\r\n"),
                       ("GET /websocket", upgrade)):
        s = connect(address)
        s.sendall(f"{line} HTTP/1.1\r\nHost: {host}\r\n{more}".encode())
        s.recv(1000)  # 100, 101 or 200: it has come to the backend
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()


def events(address, host):
    s, other = connect(address), connect(address)
    s.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    f, g = s.makefile("rb"), other.makefile("rb")
    while f.readline() != b"\r\n":
        pass
    for i in range(3):
        other.sendall(f"GET /next-event HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        while g.readline() != b"\r\n":
            pass
        size = int(f.readline(), 16)
        if f.read(size) != b"data: %d\n\n" % i:
            sys.exit("another event came")
        f.readline()
    print(f"3 events {f.read(5)}")


def ask(s, host, path):
    """The body of the answer."""
    s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return read_answer(s)[1]


def read_answer(s):
    """Head and body of an answer, whose length has to be in the head."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = s.recv(65536)
        if not data:
            raise OSError(f"no answer: {got}")
        got += data
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    return head, read_exactly(s, body, int(length[1]) if length else 0)


def read_exactly(s, got, length):
    parts, count = [got], len(got)
    while count < length:
        data = s.recv(1 << 20)
        if not data:
            raise OSError(f"{count} of {length} bytes")
        parts.append(data)
        count += len(data)
    return b"".join(parts)


def send_some(s, data):
    """Sends as much as the other end takes. Returns the rest."""
    at = 0
    s.settimeout(0.5)
    try:
        while at < len(data):
            at += s.send(data[at:at + 65536])
    except socket.timeout:
        pass
    s.settimeout(20)
    return data[at:]


class Pauses:
    """What is on its way while nobody moves a byte. Each of them has to go on afterwards."""

    def __init__(self, address, host):
        self.data, self.host = os.urandom(LARGE), host.encode()
        self.other, self.down, self.up, self.later, self.switch = (connect(address)
                                                                    for _ in range(5))
        self.down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.send(self.down, b"GET /large")
        self.send(self.up, b"PUT /sum", b"Content-Length: %d\r\n" % LARGE)
        self.up.sendall(self.data[:1000])
        self.send(self.later, b"PUT /later", b"Content-Length: %d\r\n" % LARGE)
        self.rest_of_later = send_some(self.later, self.data)
        self.send(self.switch, b"GET /websocket", b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        read_answer(self.switch)
        self.rest_of_switch = send_some(self.switch, self.data)

    def send(self, s, line, fields=b""):
        s.sendall(line + b" HTTP/1.1\r\nHost: " + self.host + b"\r\n" + fields + b"\r\n")

    def has_sum(self, s):
        want = f"{hashlib.sha256(self.data).hexdigest()} {LARGE}".encode()
        return read_answer(s)[1] == want

    def download(self):
        head, body = read_answer(self.down)
        return hashlib.sha256(body).hexdigest().encode() in head

    def upload(self):
        self.up.sendall(self.data[1000:])
        return self.has_sum(self.up)

    def slow_target(self):
        ask(self.other, self.host.decode(), "/go-on")
        self.later.sendall(self.rest_of_later)
        return self.has_sum(self.later)

    def tunnel(self):
        sender = threading.Thread(target=self.switch.sendall, args=(self.rest_of_switch,))
        sender.start()
        return read_exactly(self.switch, b"", LARGE) == self.data


def goes_on(what):
    try:
        return what()
    except OSError as e:
        print(f"{what.__name__}: {e!r}")
        return False


def pauses(address, host):
    p = Pauses(address, host)
    half, silent, finished = connect(address), connect(address), connect(address)
    p.send(finished, b"GET /large")
    finished.shutdown(socket.SHUT_WR)
    half.sendall(b"GET / HTTP/1.1\r\nHo")
    p.send(silent, b"GET /silent")
    for s in finished, p.down:
        s.recv(1, socket.MSG_PEEK)  # the response has begun: it cannot be late any more
    while ask(p.other, host, "/waiting") != b"2":  # then the front end knows what it waits for
        time.sleep(0.05)
    print("waits", flush=True)
    sys.stdin.readline()
    print(half.recv(12)[9:].decode(), silent.recv(12)[9:].decode(), flush=True)
    whats = p.download, p.upload, p.slow_target, p.tunnel
    print("went on:", *(what.__name__ for what in whats if goes_on(what)), flush=True)
    sys.stdin.readline()
    ends = select.poll()
    ends.register(finished, 0)  # not by reading, which would let it go on
    ends.poll(20000)
    print("finished:", read_all(finished)[1], flush=True)


def last(address, host, log):
    clients = {}
    for size in range(100000, 1500000, 30000):
        clients[size] = s = socket.socket()
        s.settimeout(20)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        s.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: {host}\r\n"
                  "Connection: close\r\n\r\n".encode())
    print("waits", flush=True)
    sys.stdin.readline()
    with open(log, encoding="ascii") as f:
        complete = re.findall(r"received_bytes=(\d+) (?!.*why=)", f.read())
    for size in clients.keys() - {int(size) for size in complete}:
        clients.pop(size).close()
    print("left", flush=True)
    sys.stdin.readline()
    whole = [size for size, s in clients.items() if read_answer(s)[1] == bytes(size)]
    print("whole" if whole and len(whole) == len(clients) else f"{len(whole)} of {len(clients)}")


def ends(address, host):
    clients = [connect(address) for _ in range(20)]
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n"
    for i, s in enumerate(clients):
        line, fields = ("GET /websocket", upgrade) if i % 2 else ("GET /endless", "")
        s.sendall(f"{line} HTTP/1.{i % 2}\r\nHost: {host}\r\n{fields}\r\n".encode())
        read_answer(s)
    print("open", flush=True)
    print(*{read_all(s)[1] for s in clients}, flush=True)


def listens(address):
    try:
        connect(address).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True


def drain(address, host, origin, log):
    later, twice, half, other = *(connect(address) for _ in range(3)), connect(origin)
    text = f"GET %s HTTP/1.1\r\nHost: {host}\r\n\r\n"
    later.sendall((text % "/later").encode())
    twice.sendall((text % "/events").encode() + (text % "/sum").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += twice.recv(1)
    while ask(other, host, "/waiting") == b"0":
        pass
    ask(half, host, "/once")
    half.sendall((text % "/sum").encode()[:-2])
    print("waits", flush=True)
    while listens(address):
        pass
    half.sendall(b"\r\n")
    print("half", read_all(half)[0].split(b"\r\n")[0].decode())
    while "event=session.draining" not in open(log, encoding="ascii").read():
        time.sleep(0.01)
    ask(other, host, "/go-on")
    print("later", re.findall("Connection: .*", read_answer(later)[0].decode()))
    for _ in range(3):
        ask(other, host, "/next-event")
    got, end = read_all(twice)
    print("twice", re.findall(r"HTTP/1.1 (\d+) |(Connection: close)", got.decode()), end)


def corpus(path):
    """Messages, each with its name in a line of its own before it: "# name"."""
    with open(path, encoding="latin-1") as file:
        for block in re.split(r"^# ", file.read(), flags=re.M)[1:]:
            name, _, text = block.partition("\n")
            yield name.strip(), unescape("".join(text.splitlines()))


def status_of(address, message):
    """The status of the first answer; "2xx+" if there are two, "closed" if there is none."""
    s = connect(address)
    s.settimeout(5)
    try:
        s.sendall(message)
        s.shutdown(socket.SHUT_WR)
        got = read_all(s)[0]
    except OSError:
        got = b""
    statuses = re.findall(rb"HTTP/1\.[01] (\d{3})", got)
    statuses = [x.decode() for x in statuses if x != b"100"]
    return "+".join(statuses) or "closed"


def statuses(address, path):
    for name, message in corpus(path):
        print(f"{status_of(address, message)}\t{name}")


def cut(address, host):
    """Each response that the backend leaves unfinished must not look like a complete one."""
    for path, minor in (("length", 1), ("chunks", 1), ("close", 1), ("length", 0), ("chunks", 0),
                        ("close", 0)):
        sys.stdin.readline()  # until there is a backend
        s = connect(address)
        s.sendall(f"GET /cut-{path} HTTP/1.{minor}\r\nHost: {host}\r\n\r\n".encode())
        got = b""
        while b"hello" not in got:
            data = s.recv(65536)
            if not data:
                sys.exit(f"{path} in HTTP/1.{minor}: no response, {got}")
            got += data
        print(f"waits {path} 1.{minor}", flush=True)
        sys.stdin.readline()  # until the backend has been killed
        rest, end = read_all(s)
        got += rest
        length = b"Content-Length: 100000" in got and len(got) < 100000
        chunks = b"Transfer-Encoding: chunked" in got and not got.endswith(b"0\r\n\r\n")
        print(f"{'cut' if length or chunks or end == 'RST' else 'COMPLETE'} {path} 1.{minor} {end}",
              flush=True)


def late(address, host):
    """A client that reads only after the target has reset its connection: all bytes, then RST."""
    for i, more in enumerate(("0\r\n", "1\r\nConnection: upgrade\r\nUpgrade: x\r\n")):
        s, other = connect(address, 4096), connect(address)
        s.sendall(f"GET /cut-late HTTP/1.{more}Host: {host}\r\n\r\n".encode())
        while int(ask(other, host, "/late")) <= i:
            pass
        got, end = read_all(s)
        body = got.split(b"\r\n\r\n", 1)[1]
        print(f"{end} after {len(body)} bytes")


JOBS = {"origin": origin, "who": who, "raw": raw, "keep": keep, "websocket": websocket_client,
        "events": events, "vanish": vanish, "pauses": pauses, "last": last, "ends": ends,
        "drain": drain, "statuses": statuses, "cut": cut, "late": late}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
