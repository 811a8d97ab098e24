# Clients of many agents behind a balancer, one thread for each agent: a request after the other,
# each on a connection of its own, and beside them requests through one CONNECT tunnel that stays.
#     shares.py load WEB CONNECT|- NAME...    until TERM; then a line for each NAME:
#                                             "NAME good N bad N cut N WHY"
# "cut" counts tunnels that ended. It says "loaded" when each agent has answered 5 times.
# Or many agents that serve nothing, crowd-1 and so on, until their sessions or the process end.
#     shares.py crowd TUNNEL COUNT TOKEN_FILE "crowd COUNT" when all are registered
import http.client, resource, select, signal, socket, sys, threading, time

SUFFIX = ".cams.example"


class Share:
    def __init__(self, name, web, tunnel):
        self.name, self.web, self.tunnel = name, web, tunnel
        self.good = self.bad = self.cut = 0
        self.why, self.through = set(), None

    def answer_is_right(self, conn, path):
        """Posts go, too: they must reach the agent as they are."""
        host = self.name + SUFFIX
        body = b"posted" if self.good % 3 == 2 else None
        method = "POST" if body else "GET"
        conn.request(method, path, body, {"Host": host})
        answer = conn.getresponse()
        text = answer.read()
        if answer.status == 200 and text == f"{method} {path} {host}\n".encode():
            return True
        self.why.add(f"{method}:{answer.status}:{text[:40].decode('latin-1').strip()}")
        return False

    def request(self):
        conn = http.client.HTTPConnection(*split(self.web), timeout=60)
        try:
            self.note(self.answer_is_right(conn, f"/{self.good}"))
        except (OSError, http.client.HTTPException) as e:
            self.why.add(e.__class__.__name__)
            self.note(False)
        conn.close()

    def note(self, is_good):
        self.good, self.bad = self.good + is_good, self.bad + (not is_good)

    def request_through_tunnel(self):
        try:
            if not self.through:
                self.through = http.client.HTTPConnection(*split(self.tunnel), timeout=60)
                self.through.set_tunnel(self.name + SUFFIX, 80)
            if self.answer_is_right(self.through, "/tunnel"):
                return
        except (OSError, http.client.HTTPException) as e:
            self.why.add("tunnel:" + e.__class__.__name__)
        self.cut += 1
        self.through.close()
        self.through = None

    def run(self, ended):
        while not ended.is_set():
            self.request()
            if self.tunnel != "-":
                self.request_through_tunnel()
            time.sleep(0.05)

    def __str__(self):
        why = " ".join(sorted(self.why)).replace("\n", " ")
        return f"{self.name} good {self.good} bad {self.bad} cut {self.cut} {why}"


def split(address):
    host, _, port = address.rpartition(":")
    return host, int(port)


def load(web, tunnel, *names):
    shares, ended = [Share(name, web, tunnel) for name in names], threading.Event()
    threads = [threading.Thread(target=s.run, args=(ended,), daemon=True) for s in shares]
    for t in threads:
        t.start()
    while any(s.good < 5 for s in shares):
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print("loaded", flush=True)
    ended.wait()
    for t in threads:
        t.join(60)
    print(*shares, sep="\n")
    print("ended", flush=True)


class Session:
    """Of an agent that serves nothing: it only answers pings (12 bytes: version 0, type 2)."""

    def __init__(self, at, name, token):
        self.sock, self.unread = socket.create_connection(split(at), timeout=60), b""
        self.sock.sendall("\r\n".join((
            "GET /revdial HTTP/1.1", f"Host: {at}", "Connection: Upgrade", "Upgrade: revdial",
            f"Revdial-Name: {name}", f"Authorization: Bearer {token}", "", "")).encode())
        while b"\r\n\r\n" not in self.unread:
            self.unread += self.sock.recv(4096) or b"ended\r\n\r\n"
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            sys.exit(f"{name}: {head}")

    def read(self):
        """False when the session has ended."""
        try:
            data = self.sock.recv(4096)
            self.unread += data
            while len(self.unread) >= 12:
                frame, self.unread = self.unread[:12], self.unread[12:]
                if frame[:4] == b"\0\2\0\1":
                    self.sock.sendall(b"\0\2\0\2" + frame[4:])
        except OSError:
            return False
        return bool(data)


def crowd(at, count, token_file):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with open(token_file) as f:
        token = f.read().strip()
    sessions, news = {}, select.epoll()

    def look(timeout):
        for fd, _ in news.poll(timeout):
            if not sessions[fd].read():
                sessions.pop(fd).sock.close()

    for i in range(int(count)):
        session = Session(at, f"crowd-{i + 1}", token)
        sessions[session.sock.fileno()] = session
        news.register(session.sock, select.EPOLLIN)
        look(0)
    print("crowd", len(sessions), flush=True)
    while sessions:
        look(None)


{"load": load, "crowd": crowd}[sys.argv[1]](*sys.argv[2:])
