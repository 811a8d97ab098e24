"""An honest session: an echo server, and a client of it through proxy and agent.

    honest.py ADDRESS       prints the port of the server; then takes commands on stdin:
        start HOST:PORT     exchange bytes there from now on
        figures             print what has been seen since the last time, as JSON
    The client holds one connection, and now and then opens another one for a moment. Each byte that
    comes back must be the one that was sent; anything else counts as lost."""
import json
import os
import select
import socket
import sys
import threading
import time

SMALL, LARGE = 64, 1 << 14
LARGE_EVERY, NEW_EVERY = 16, 40
PAUSE = 0.002
lock = threading.Lock()
seen = {"trips": [], "opens": [], "bytes": 0, "lost": []}


def serve(listener):
    """All connections in one thread."""
    poll, socks = select.epoll(), {}
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                socks[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
                continue
            try:
                data = socks[fd].recv(1 << 16)
                socks[fd].sendall(data)
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                socks.pop(fd).close()


def open_one(address):
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exchange(sock, size):
    data, got = os.urandom(size), b""
    sock.sendall(data)
    while len(got) < size:
        more = sock.recv(size - len(got))
        if not more:
            raise ConnectionError("EOF")
        got += more
    if got != data:
        raise ConnectionError("other bytes came back")


def timed(kind, function, *arguments):
    began = time.monotonic()
    result = function(*arguments)
    took = time.monotonic() - began
    with lock:
        seen[kind].append(took * 1000)
    return result


def newcomer(address):
    with open_one(address) as sock:
        exchange(sock, SMALL)


def run(address):
    sock, turn = None, 0
    while True:
        try:
            sock = sock or open_one(address)
            turn += 1
            if turn % NEW_EVERY == 0:
                timed("opens", newcomer, address)
            if turn % LARGE_EVERY == 0:
                exchange(sock, LARGE)
            else:
                timed("trips", exchange, sock, SMALL)
            with lock:
                seen["bytes"] += LARGE if turn % LARGE_EVERY == 0 else SMALL
        except OSError as e:
            with lock:
                seen["lost"].append(f"{e.__class__.__name__}: {e}")
            sock = None
            time.sleep(0.2)
        time.sleep(PAUSE)


def percentile(values, share):
    return sorted(values)[int(len(values) * share)] if values else None


def figures():
    with lock:
        trips, opens, lost = seen["trips"], seen["opens"], seen["lost"]
        answer = {"trips": len(trips), "opens": len(opens), "bytes": seen["bytes"], "lost": lost,
                  "p50": percentile(trips, 0.5), "p99": percentile(trips, 0.99),
                  "worst": max(trips + opens, default=None), "open": percentile(opens, 0.5)}
        seen.update(trips=[], opens=[], bytes=0, lost=[])
    return answer


listener = socket.create_server((sys.argv[1], 0), backlog=1024)
threading.Thread(target=serve, args=(listener,), daemon=True).start()
print(listener.getsockname()[1], flush=True)
for line in sys.stdin:
    if line.startswith("start "):
        threading.Thread(target=run, args=(line.split()[1],), daemon=True).start()
    else:
        print(json.dumps(figures()), flush=True)
