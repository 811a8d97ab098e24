# A middlebox that is told what to do with the connections through it.
#     python3 box.py LISTEN TO FILE
# FILE has one line, which may change at any time:
#   pass         bytes go on as they come
#   slices N     the next N bytes of each way go on one by one
#   lumps        bytes wait until there are 64 KiB of them, or none has come for 50 ms
#   late S       what comes next of each way goes on S seconds later, and the rest after it
#   fin          each way ends with FIN at an odd place
#   half proxy   the way to the proxy does, and the other one goes on; "half agent" the reverse
#   forget       connections that there are lead nowhere any more; new ones pass
#   flip         one bit of each piece of up to 64 KiB is another one
# Prints "listening", and each line once when it has had an effect.
import socket, sys, threading, time

PIECE = 65536
LOOK_S = 0.02
lock = threading.Lock()


class Order:
    """A line of the file; number says which one is later."""

    def __init__(self, line, number):
        self.line, self.number = line, number
        self.word, *self.rest = line.split()
        self.is_told = False

    def tell(self):
        with lock:
            if not self.is_told:
                print(self.line, flush=True)
            self.is_told = True


order = Order("pass", 0)


class Way(threading.Thread):
    """Bytes from one socket to the other. name: to whom."""

    def __init__(self, name, source, sink):
        super().__init__(name=name, daemon=True)
        self.source, self.sink = source, sink
        self.born = self.done = order.number
        self.left = 0

    def run(self):
        try:
            while data := self.source.recv(PIECE):
                self.handle(order, data)
            self.end()
        except OSError:
            self.source.close()
            self.sink.close()

    def end(self):
        self.sink.shutdown(socket.SHUT_WR)

    def handle(self, now, data):
        if now.word == "forget" and self.born < now.number:
            now.tell()
            return
        if now.word in ("pass", "forget"):
            self.sink.sendall(data)
        else:
            getattr(self, now.word)(now, data)

    def is_first(self, now):
        """Is this the first piece since the line came?"""
        first, self.done = self.done < now.number, now.number
        return first

    def slices(self, now, data):
        if self.is_first(now):
            self.left = int(now.rest[0])
            self.sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(min(self.left, len(data))):
            self.sink.sendall(data[i : i + 1])
        self.sink.sendall(data[self.left :])
        if self.left and len(data) >= self.left:
            now.tell()
        self.left = max(0, self.left - len(data))

    def lumps(self, now, data):
        self.source.settimeout(0.05)
        try:
            while len(data) < PIECE:
                more = self.source.recv(PIECE)
                if not more:
                    break
                data += more
        except TimeoutError:
            pass
        self.source.settimeout(None)
        self.sink.sendall(data)
        now.tell()

    def late(self, now, data):
        if self.is_first(now):
            now.tell()
            time.sleep(float(now.rest[0]))
        self.sink.sendall(data)

    def fin(self, now, data):
        if self.is_first(now):
            self.sink.sendall(data[: len(data) // 2 | 1])
            self.end()
            now.tell()

    def half(self, now, data):
        if self.name == now.rest[0]:
            self.fin(now, data)
        else:
            self.sink.sendall(data)

    def flip(self, now, data):
        data = bytearray(data)
        data[len(data) // 2] ^= 4
        self.sink.sendall(data)
        now.tell()


def watch(path):
    global order
    while True:
        with open(path) as f:
            line = f.read().strip()
        if line and line != order.line:
            order = Order(line, order.number + 1)
        time.sleep(LOOK_S)


def pair(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


listen, to, path = sys.argv[1:]
listener = socket.create_server(pair(listen))
threading.Thread(target=watch, args=(path,), daemon=True).start()
print("listening", flush=True)
while True:
    agent = listener.accept()[0]
    try:
        proxy = socket.create_connection(pair(to))
    except OSError:
        agent.close()
        continue
    Way("proxy", agent, proxy).start()
    Way("agent", proxy, agent).start()
