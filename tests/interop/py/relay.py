"""py-libp2p's yamux at one end of a session with revdial, as a relay between its streams and TCP,
on a socket or on a WebSocket of trio-websocket. What it takes and does is what ../go/relay.go says;
the library's name is not looked at."""
import os
import socket
import struct
import sys

import trio
import trio_websocket
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import Yamux

AUTHORIZATION = ('Authorization', 'Bearer ' + os.environ.get('REVDIAL_TOKEN', ''))
LINGER_NOT = struct.pack('ii', 1, 0)


def features(words):
    return [('Revdial-Version', '1'), ('Revdial-Features', words)] if words else []


class Bytes:
    """What the muxer reads from and writes to: trio's stream, or the messages of a WebSocket."""

    def __init__(self, stream, is_initiator):
        self.stream, self.is_initiator = stream, is_initiator
        self.rest = b''
        self.is_web = isinstance(stream, trio_websocket.WebSocketConnection)

    async def read(self, count=None):
        if not self.is_web:
            return await self.stream.receive_some(count or 65536)
        try:
            while not self.rest:
                self.rest = await self.stream.get_message()
        except trio_websocket.ConnectionClosed:
            return b''
        count = count or len(self.rest)
        data, self.rest = self.rest[:count], self.rest[count:]
        return data

    async def write(self, data):
        await (self.stream.send_message(data) if self.is_web else self.stream.send_all(data))

    async def close(self):
        await self.stream.aclose()

    def get_remote_address(self):
        return None


def reset_tcp(tcp):
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    tcp.socket.close()


async def copy_both(stream, tcp):
    """Joins a stream with a TCP connection until both directions have ended."""
    async def up():
        while data := await tcp.receive_some(65536):
            await stream.write(data)
        await stream.close()

    async def down():
        try:
            while data := await stream.read(65536):
                await tcp.send_all(data)
        except MuxedStreamEOF:
            pass
        await tcp.send_eof()

    try:
        async with trio.open_nursery() as both:
            both.start_soon(up)
            both.start_soon(down)
    except BaseExceptionGroup as group:
        if group.split(trio.Cancelled)[0]:
            raise
        try:
            await stream.reset()
        finally:
            reset_tcp(tcp)


async def serve(muxer, nursery, take):
    """Takes the streams that the other side opens, until the session ends."""
    while True:
        try:
            stream = await muxer.accept_stream()
        except Exception:
            return
        nursery.start_soon(take, stream)


async def backend(url, target, words=''):
    host, port = target.split(':')

    async def to_target(stream):
        await copy_both(stream, await trio.open_tcp_stream(host, int(port)))

    headers = [AUTHORIZATION, ('Revdial-Name', 'peer')] + features(words)
    async with trio.open_nursery() as nursery:
        muxer = Yamux(Bytes(await ask(url, headers, nursery), False), None, is_initiator=False)
        nursery.start_soon(muxer.start)
        await serve(muxer, nursery, to_target)


async def ask(url, headers, nursery):
    if url.startswith('ws:'):
        return await trio_websocket.connect_websocket_url(
            nursery, url, subprotocols=['revdial'], extra_headers=headers, max_message_size=1 << 30)
    address, path = url.split('/', 3)[2:]
    host, port = address.split(':')
    tcp = await trio.open_tcp_stream(host, int(port))
    lines = ['GET /%s HTTP/1.1' % path, 'Host: ' + address]
    lines += ['Connection: Upgrade', 'Upgrade: revdial']
    lines += ['%s: %s' % pair for pair in headers]
    await tcp.send_all('\r\n'.join(lines + ['', '']).encode())
    head = await read_head(tcp)
    if not head.startswith(b'HTTP/1.1 101'):
        raise RuntimeError(head)
    return tcp


async def read_head(tcp):
    head = b''
    while not head.endswith(b'\r\n\r\n'):
        head += await tcp.receive_some(1)
        if not head:
            raise RuntimeError('no head')
    return head


async def proxy(scheme, words=''):
    backends = (await trio.open_tcp_listeners(0, host='127.0.0.1'))[0]
    clients = (await trio.open_tcp_listeners(0, host='127.0.0.1'))[0]
    for listener, what in ((backends, ''), (clients, ' for clients')):
        print('listening on %s:%d%s' % (*listener.socket.getsockname(), what), flush=True)
    async with trio.open_nursery() as nursery:
        bytes_of_peer = Bytes(await answer(await backends.accept(), scheme, words, nursery), True)
        muxer = Yamux(bytes_of_peer, None, is_initiator=True)
        nursery.start_soon(muxer.start)

        async def to_stream(tcp):
            try:
                stream = await muxer.open_stream()
            except Exception:
                reset_tcp(tcp)
                return
            await copy_both(stream, tcp)

        async def unwanted(stream):
            await stream.reset()

        nursery.start_soon(serve, muxer, nursery, unwanted)
        while True:
            nursery.start_soon(to_stream, await clients.accept())


async def answer(tcp, scheme, words, nursery):
    if scheme == 'ws':
        request = await trio_websocket.wrap_server_stream(nursery, tcp)
        return await request.accept(subprotocol='revdial', extra_headers=features(words))
    await read_head(tcp)
    lines = ['HTTP/1.1 101 Switching Protocols', 'Connection: Upgrade', 'Upgrade: revdial']
    lines += ['%s: %s' % pair for pair in features(words)]
    await tcp.send_all('\r\n'.join(lines + ['', '']).encode())
    return tcp


if __name__ == '__main__':
    trio.run({'backend': backend, 'proxy': proxy}[sys.argv[2]], *sys.argv[3:])
