# Servers that stand behind the agent, all in one process.     python3 peers.py FILE [ADDRESS]
# Or a name server that knows no name, on port 53 of loopback.   python3 peers.py names
# Prints "NAME PORT" for each, then one line for each connection whose end matters to a test:
# "NAME eof|reset|ERROR BYTES SHA256". FILE is what the ones that send it send.
import hashlib, http.server, os, socket, socketserver, sys, threading

FILE = sys.argv[1]
ADDRESS = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
CHUNK = 1 << 18
lock = threading.Lock()


def say(*words):
    with lock:
        print(*words, flush=True)


def take_all(sock):
    """Reads to the end. Returns how it ended, the number of bytes, and their hash."""
    digest, size, buf = hashlib.sha256(), 0, bytearray(CHUNK)
    try:
        while True:
            n = sock.recv_into(buf)
            if n == 0:
                return "eof", size, digest.hexdigest()
            digest.update(memoryview(buf)[:n])
            size += n
    except ConnectionResetError:
        return "reset", size, digest.hexdigest()
    except OSError as e:
        return e.__class__.__name__, size, digest.hexdigest()


def send_file(sock):
    with open(FILE, "rb") as f:
        sock.sendfile(f)


def source(sock):
    """The whole file, then FIN: a response that only the end of the connection delimits."""
    send_file(sock)
    sock.shutdown(socket.SHUT_WR)
    how, size, digest = take_all(sock)
    say("source", how, size, digest)


def sink(sock):
    """Takes all, and answers only after EOF."""
    how, size, digest = take_all(sock)
    say("sink", how, size, digest)
    if how == "eof":
        sock.sendall(f"{digest} {size}\n".encode())


def first(sock):
    """Finishes before it has read anything, and takes all that still comes."""
    sock.sendall(b"I have finished\n")
    sock.shutdown(socket.SHUT_WR)
    say("first", *take_all(sock))


def flood(sock):
    """Sends for ever. Little waits in the system, which has no memory for all of it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    zeros = bytes(CHUNK)
    try:
        while True:
            sock.sendall(zeros)
    except OSError:
        pass


def echo(sock):
    buf = bytearray(CHUNK)
    while n := sock.recv_into(buf):
        sock.sendall(memoryview(buf)[:n])


def deaf(sock):
    """Never reads, and holds the connection until the other end aborts it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    threading.Event().wait()


def know_no_name():
    """RFC 1035, section 4.1.1: the question comes back with QR, RD, RA and RCODE 3, name error."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 53))
        say("ready")
        while True:
            q, client = sock.recvfrom(512)
            sock.sendto(q[:2] + b"\x81\x83" + q[4:6] + bytes(6) + q[12:], client)


def who(name):
    def serve(sock):
        """Says its name."""
        sock.sendall(name.encode() + b"\n")

    return serve


class Raw(socketserver.ThreadingTCPServer):
    request_queue_size = 4096
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, serve):
        self.serve = serve
        super().__init__((ADDRESS, 0), None)

    def finish_request(self, request, client_address):
        try:
            self.serve(request)
        except OSError:
            pass


class Closing(http.server.BaseHTTPRequestHandler):
    """HTTP/1.0 as it was: no length, the end of the connection is the end of the page."""

    protocol_version = "HTTP/1.0"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.flush()
        send_file(self.connection)

    def log_message(self, *words):
        pass


class Upload(http.server.BaseHTTPRequestHandler):
    """Answers PUT with the SHA-256 of what came."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            data = self.rfile.read1(min(left, CHUNK))
            if not data:
                return
            digest.update(data)
            left -= len(data)
        text = (digest.hexdigest() + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass


class Web(http.server.ThreadingHTTPServer):
    request_queue_size = 4096

    def __init__(self, handler):
        super().__init__((ADDRESS, 0), handler)


if FILE == "names":
    know_no_name()
threading.stack_size(1 << 18)
servers = {f.__name__: Raw(f) for f in (source, sink, first, flood, echo, deaf)}
servers |= {name: Raw(who(name)) for name in ("ann", "bob", "cid")}
servers |= {"closing": Web(Closing), "upload": Web(Upload)}
for name, server in servers.items():
    say(name, server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
threading.Event().wait()
