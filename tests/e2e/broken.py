# What stands between an agent and its proxy and is wrong.
#     python3 broken.py MODE [HOST:PORT [ADDRESS]]
# Prints the port that it listens on, at 127.0.0.1 or that address.
#   407         an egress proxy that wants a login
#   open        an egress proxy that lets everybody through, to nowhere
#   strip       passes all on to HOST:PORT, but no Upgrade except to WebSocket
#   strip-all   passes all on, but no Upgrade
#   late        passes all on, and answers as if it were an hour ago
#   full        takes no connection: its queue is full
import datetime, re, socket, sys, threading

mode, upstream = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""


def head(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            return data
        data += more
    return data


def strip(data):
    if mode == "strip-all" or mode == "strip" and b"Upgrade: websocket" not in data:
        data = re.sub(rb"\r\n(Upgrade|Connection): [^\r]*", b"", data)
    return data


def date(data):
    if mode != "late":
        return data
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    line = then.strftime("\r\nDate: %a, %d %b %Y %H:%M:%S GMT")
    return data.replace(b"\r\n", line.encode() + b"\r\n", 1)


def copy(source, to):
    try:
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    asked = head(client)
    if mode == "407":
        client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                       b"Proxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
        client.close()
        return
    if mode == "open":
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        head(client)
        return
    host, _, port = upstream.rpartition(":")
    server = socket.create_connection((host, int(port)))
    server.sendall(strip(asked))
    client.sendall(date(head(server)))
    threading.Thread(target=copy, args=(client, server), daemon=True).start()
    copy(server, client)


listener = socket.create_server((sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1", 0))
print("listening", listener.getsockname()[1], flush=True)
if mode == "full":
    listener.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for s in waiting:
        s.setblocking(False)
        s.connect_ex(listener.getsockname())
    threading.Event().wait()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
