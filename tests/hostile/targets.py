"""Targets behind the agent, all in one thread. Prints "NAME PORT" for each.     targets.py ADDRESS
    silent    accepts, and neither reads nor sends
    source    sends zeros for ever
    full      its queue is full: it answers nobody who connects"""
import select
import socket
import sys

address, zeros = sys.argv[1], bytes(1 << 16)
poll, socks = select.epoll(), {}
listeners = {name: socket.create_server((address, 0), backlog=4096)
             for name in ("silent", "source")}
full = socket.create_server((address, 0), backlog=0)
waiting = [socket.socket() for _ in range(2)]
for sock in waiting:
    sock.setblocking(False)
    sock.connect_ex(full.getsockname())
for name, sock in {**listeners, "full": full}.items():
    print(name, sock.getsockname()[1], flush=True)


def come(listener, events, buffers):
    sock, _ = listener.accept()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
    socks[sock.fileno()] = sock
    poll.register(sock, events)


def go(fd):
    poll.unregister(fd)
    socks.pop(fd).close()


for listener in listeners.values():
    poll.register(listener, select.EPOLLIN)
while True:
    for fd, event in poll.poll():
        if fd == listeners["silent"].fileno():
            come(listeners["silent"], select.EPOLLRDHUP, 4096)
        elif fd == listeners["source"].fileno():
            come(listeners["source"], select.EPOLLOUT | select.EPOLLRDHUP, 1 << 16)
        elif event & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            go(fd)
        elif event & select.EPOLLOUT:
            try:
                socks[fd].send(zeros)
            except BlockingIOError:
                pass
            except OSError:
                go(fd)
