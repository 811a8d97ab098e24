// libp2p's yamux in JavaScript at one end of a session with revdial, as a relay between its streams
// and TCP, on a socket or on a WebSocket of the package ws. What it takes and does is what
// ../go/relay.go says; the library's name is not looked at.
import { yamux } from '@chainsafe/libp2p-yamux'
import { createServer as createHttpServer, request } from 'node:http'
import { connect, createServer } from 'node:net'
import { WebSocket, WebSocketServer, createWebSocketStream } from 'ws'

const [, role, place, ...rest] = process.argv.slice(2)
const authorization = `Bearer ${process.env.REVDIAL_TOKEN}`
const quiet = Object.assign(() => {}, { error() {}, trace() {}, enabled: false })

function features(list) {
    return list ? { 'Revdial-Version': '1', 'Revdial-Features': list } : {}
}

function lines(headers) {
    return Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
}

// A yamux session over a stream of bytes. direction is 'outbound' for the yamux client.
function sessionOn(bytes, direction, onIncomingStream) {
    const muxer = yamux()({ logger: { forComponent: () => quiet } })
        .createStreamMuxer({ direction, onIncomingStream })
    const drained = () => new Promise((resolve) => bytes.once('drain', resolve))
    const ended = new Promise((resolve) => bytes.once('close', resolve))
    bytes.on('error', () => {})
    muxer.sink(bytes).catch(() => {})
    const send = async () => {
        for await (const frame of muxer.source)
            if (!bytes.write(frame.subarray())) await Promise.race([drained(), ended])
        bytes.end()
    }
    send().catch(() => {})
    return muxer
}

// Joins a stream with a TCP connection until both directions have ended.
async function copyBoth(stream, socket) {
    const gone = new Promise((resolve) => socket.once('close', resolve))
    socket.on('error', (why) => stream.abort(why))
    const up = stream.sink(socket.iterator({ destroyOnReturn: false }))
    const down = async () => {
        for await (const bytes of stream.source)
            if (!socket.write(bytes.subarray()))
                await Promise.race([new Promise((resolve) => socket.once('drain', resolve)), gone])
        if (stream.status === 'reset' || stream.status === 'aborted') throw new Error(stream.status)
        socket.end()
    }
    try {
        await Promise.all([up, down()])
    } catch (why) {
        stream.abort(why)
        socket.resetAndDestroy()
    }
}

function toTarget(stream) {
    const [host, port] = rest[0].split(':')
    const socket = connect({ host, port: Number(port), allowHalfOpen: true })
    void copyBoth(stream, socket)
}

function backend() {
    const url = place
    const headers = { ...features(rest[1]), Authorization: authorization, 'Revdial-Name': 'peer' }
    if (url.startsWith('ws:')) {
        const socket = new WebSocket(url, 'revdial', { headers })
        socket.once('open', () => sessionOn(createWebSocketStream(socket), 'inbound', toTarget))
        return
    }
    const upgrade = { Connection: 'Upgrade', Upgrade: 'revdial' }
    const asked = request(url, { headers: { ...headers, ...upgrade } })
    asked.once('upgrade', (response, socket, head) => {
        socket.unshift(head)
        sessionOn(socket, 'inbound', toTarget)
    })
    asked.end()
}

// Clients that come before the session are held until it is there.
function takeClients(muxer) {
    const clients = createServer({ allowHalfOpen: true }, async (socket) => {
        socket.pause()
        try {
            await copyBoth((await muxer).newStream(), socket)
        } catch {
            socket.resetAndDestroy()
        }
    })
    clients.listen(0, '127.0.0.1', () => console.log(`listening on ${at(clients)} for clients`))
}

function at(server) {
    return `127.0.0.1:${server.address().port}`
}

function proxy() {
    let begin
    const muxer = new Promise((resolve) => { begin = resolve })
    const refuse = (stream) => stream.abort(new Error('not wanted'))
    const start = (bytes) => begin(sessionOn(bytes, 'outbound', refuse))
    const server = createHttpServer((_, response) => response.writeHead(404).end())
    const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: true })
    sockets.on('headers', (head) => head.push(...lines(features(rest[0]))))
    server.on('upgrade', (asked, socket, head) => {
        if (asked.headers.authorization !== authorization) return socket.destroy()
        if (place === 'ws') {
            const started = (web) => start(createWebSocketStream(web))
            return sockets.handleUpgrade(asked, socket, head, started)
        }
        const headers = { Connection: 'Upgrade', Upgrade: 'revdial', ...features(rest[0]) }
        const answer = ['HTTP/1.1 101 Switching Protocols', ...lines(headers), '', '']
        socket.write(answer.join('\r\n'))
        socket.unshift(head)
        return start(socket)
    })
    server.listen(0, '127.0.0.1', () => {
        console.log(`listening on ${at(server)}`)
        takeClients(muxer)
    })
}

if (role === 'backend') backend()
else if (role === 'proxy') proxy()
else throw new Error('usage: relay.mjs LIBRARY backend URL TARGET | proxy SCHEME, [FEATURES]')
