# A site with a page, files, events and a WebSocket, and Chromium that opens it through --http.
#     python3 browser.py serve                prints "http PORT", serves until it is ended
#     python3 browser.py open FRONT URL       prints "ok" and figures, or what is wrong
import base64, hashlib, http.server, json, sys, threading

sys.dont_write_bytecode = True  # nothing is written beside the sources

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PICTURES, EVENTS = 12, 5

PAGE = """<!DOCTYPE html><meta charset=utf-8><title>loading</title>
<link rel=icon href=data:,><link rel=stylesheet href=/style.css>""" + "".join(
    f"<img src=http://pictures.test/{n}.svg>" for n in range(PICTURES)) + "<script src=/code.js>" \
    "</script>"

CODE = """
const loaded = new Promise((done) => addEventListener('load', done));
const events = new Promise((done, fail) => {  // the next one is sent when this one has come
  const seen = [], source = new EventSource('/events');
  source.onerror = () => fail('events');
  source.onmessage = (e) => {
    seen.push(e.data);
    if (seen.length == %d) { source.close(); done(seen.join()); }
    else fetch('/next', {method: 'POST', body: e.data});
  };
});
const socket = new Promise((done, fail) => {
  const ws = new WebSocket(`ws://${location.host}/socket`), sizes = [1, 200, 60000];
  ws.onopen = () => ws.send('x'.repeat(sizes[0]));
  ws.onmessage = (e) => {
    if (e.data !== 'x'.repeat(sizes.shift())) fail('another message');
    else if (sizes.length) ws.send('x'.repeat(sizes[0]));
    else ws.close(1000);
  };
  ws.onclose = (e) => e.wasClean ? done(e.code) : fail('the WebSocket was cut');
});
Promise.all([events, socket, loaded]).then(([seen, code]) => document.title = JSON.stringify({
  events: seen, code, style: getComputedStyle(document.body).color,
  pictures: [...document.images].filter((i) => i.naturalWidth == 7).length,
})).catch((why) => document.title = 'failed: ' + why);
""" % EVENTS

FILES = {"/": ("text/html", PAGE), "/code.js": ("text/javascript", CODE),
         "/style.css": ("text/css", "body { color: rgb(1, 2, 3) }")}
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"></svg>'


class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    may_go_on = threading.Semaphore(0)

    def answer(self, kind, text):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.may_go_on.release()
        self.answer("text/plain", "")

    def do_GET(self):
        if self.path == "/events":
            self.events()
        elif self.path == "/socket":
            self.socket()
        elif self.path.endswith(".svg"):
            self.answer("image/svg+xml", PICTURE)
        else:
            self.answer(*FILES[self.path])

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for n in range(EVENTS):
            self.wfile.write(f"data: {n}\n\n".encode())
            if n < EVENTS - 1:
                self.may_go_on.acquire()
        self.close_connection = True

    def socket(self):
        key = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode()).digest()
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(key).decode())
        self.end_headers()
        self.close_connection = True
        is_over = False
        while not is_over:
            is_over = self.echo_frame()

    def echo_frame(self):
        """Returns whether it was the closing one."""
        head = self.rfile.read(2)
        length = head[1] & 127
        more = self.rfile.read(2) if length == 126 else b""
        if more:
            length = int.from_bytes(more, "big")
        mask = self.rfile.read(4)
        data = bytes(b ^ mask[i & 3] for i, b in enumerate(self.rfile.read(length)))
        self.wfile.write(bytes([head[0], head[1] & 127]) + more + data)
        return head[0] & 15 == 8

    def log_message(self, *_):
        pass


def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    print("http", server.server_port, flush=True)
    server.serve_forever()


def open_page(front, url):
    import chromium
    browser = None
    try:
        browser = chromium.start(f"--host-resolver-rules=MAP *.test {front}")
        browser.get(url)
        title = chromium.until("an outcome", lambda: browser.title[:1] in "{f" and browser.title)
        bad = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        want = {"events": ",".join(str(n) for n in range(EVENTS)), "code": 1000,
                "style": "rgb(1, 2, 3)", "pictures": PICTURES}
        if bad or title[0] != "{" or json.loads(title) != want:
            sys.exit(f"{title} {bad}")
        print("ok", browser.capabilities["browserVersion"])
    finally:
        if browser:
            browser.quit()


if __name__ == "__main__":
    {"serve": serve, "open": open_page}[sys.argv[1]](*sys.argv[2:])
