# An endpoint that says who may register, for --auth-url: tokens and passwords that begin with
# "ext-in" may. Where the name is that of a method below, the answer is a broken one.
#     python3 endpoint.py [CERTIFICATE KEY]
# Prints its address. What it was asked is on stderr. A request for /release lets go of "waits".
import base64, hmac, http.server, json, ssl, sys, threading, time

FIELDS = "Authorization", "Revdial-Name", "Revdial-Instance", "Revdial-Peer"
released = threading.Event()


def unpadded(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Endpoint(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, *(f"{f}={self.headers[f]}" for f in FIELDS), file=sys.stderr, flush=True)
        if self.path == "/release":
            released.set()
        getattr(self, self.headers["Revdial-Name"] or "", self.judge)()

    def answer(self, status, *fields):
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def raw(self, data):
        self.connection.sendall(data)

    def judge(self, *fields):
        scheme, _, word = (self.headers["Authorization"] or "").partition(" ")
        if scheme == "Basic":
            word = base64.b64decode(word).decode().split(":", 1)[1]
        status = 200 if word.startswith("ext-in") else 403 if word == "ext-denied" else 401
        self.answer(status, *fields)

    def named(self):
        self.judge(("Revdial-Identity", "somebody"), ("Revdial-Group", "guests"))

    def hinted(self):
        self.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
        self.judge(("Revdial-Identity", "hinted"))

    def hints(self):
        try:
            while True:
                self.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        except OSError:
            pass

    def shop(self):
        self.judge(("Revdial-Hosts", "shop.example, *.shop.example"))

    def wrong(self):
        self.answer(200, ("Revdial-Hosts", "*"))

    def brief(self):
        self.judge(("Revdial-Expires", "1"))

    def single(self):
        self.judge(("Revdial-Max-Per-Identity", "1"), ("Revdial-Session-Rate", "2M"))

    def jwt(self):
        """HS256 with the key "key"; the name must be the one in it."""
        word = (self.headers["Authorization"] or "").partition(" ")[2]
        signed, _, signature = word.rpartition(".")
        right = hmac.digest(b"key", signed.encode(), "sha256")
        if unpadded(right) != signature:
            return self.answer(401)
        said = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        left = int(said["exp"] - time.time())
        if left <= 0 or said["name"] != self.headers["Revdial-Name"]:
            return self.answer(401 if left <= 0 else 403)
        self.answer(200, ("Revdial-Identity", said["sub"]), ("Revdial-Expires", str(left)))

    def waits(self):
        released.wait()
        self.judge()

    def slow(self):
        threading.Event().wait()

    def drips(self):  # a byte now and then is no answer either
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
            self.raw(bytes([byte]))
            time.sleep(0.1)

    def error(self):
        self.answer(500)

    def moved(self):
        self.answer(302, ("Location", "/"))

    def garbage(self):
        self.raw(b"\x16\x03\x01 no HTTP at all\r\n\r\n")

    def status(self):
        self.raw(b"HTTP/1.1 2000 OK\r\n\r\n")

    def lines(self):
        self.raw(b"HTTP/1.1 200 OK\r\nRevdial-Group: a\n\r\n\r\n")

    def zero(self):
        self.raw(b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n")

    def huge(self):
        try:
            self.raw(b"HTTP/1.1 200 OK\r\n")
            for _ in range(10000):
                self.raw(b"X-Filler: " + b"x" * 1000 + b"\r\n")
        except OSError:
            pass

    def closed(self):
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Le")

    def nothing(self):
        pass

    def twice(self):
        self.answer(200, ("Revdial-Group", "a"), ("Revdial-Group", "b"))

    def fast(self):
        self.answer(200, ("Revdial-Stream-Rate", "fast"))

    def soon(self):
        self.answer(200, ("Revdial-Expires", "soon"))

    def handle(self):
        super().handle()
        self.close_connection = True

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
server.daemon_threads = True
if sys.argv[1:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[1:])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(f"127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
