// A whole backend for Node.js: node backend.mjs ws://HOST:PORT/revdial NAME TARGET_HOST:PORT
// The environment variable REVDIAL_TOKEN has the token. Streams of the proxy go to the target;
// after a lost connection it dials again. A WebSocket passes front ends that take nothing else.
import { yamux } from '@chainsafe/libp2p-yamux'
import { connect } from 'node:net'
import { createWebSocketStream, WebSocket } from 'ws'

const [url, name, target] = process.argv.slice(2)
const [port, host] = [target.slice(target.lastIndexOf(':') + 1), target.replace(/:\d+$/, '')]

const quiet = Object.assign(() => {}, { error() {}, trace() {}, enabled: false })
const logger = { forComponent: () => quiet }

// The bytes of a yamux stream, as Node's sockets want them.
async function* bytesOf(stream) {
    for await (const piece of stream.source) yield piece.subarray()
}

async function forward(stream) {
    const socket = connect({ host, port, allowHalfOpen: true })
    const down = async () => {
        for await (const bytes of bytesOf(stream)) {
            if (!socket.write(bytes)) await new Promise((go) => socket.once('drain', go))
        }
        socket.end()
    }
    const broken = new Promise((_, fail) => socket.on('error', fail))
    try {
        await Promise.race([broken, new Promise((go) => socket.once('connect', go))])
        const up = stream.sink(socket.iterator({ destroyOnReturn: false }))
        await Promise.race([broken, Promise.all([up, down()])])
    } catch (why) {
        stream.abort(why)
        socket.resetAndDestroy() // a FIN would look like the client's
    }
}

// Streams must not end in order where only the connection has ended.
async function* wholeOf(wire) {
    yield* bytesOf({ source: wire })
    throw new Error('the connection is lost')
}

function dial() {
    const headers = { 'Revdial-Name': name, Authorization: `Bearer ${process.env.REVDIAL_TOKEN}` }
    const socket = new WebSocket(url, 'revdial', { headers })
    socket.once('error', (why) => console.error(why.message))
    socket.once('close', () => setTimeout(dial, 1000))
    socket.once('open', () => {
        const wire = createWebSocketStream(socket).on('error', () => socket.terminate())
        const onIncomingStream = (stream) => void forward(stream)
        const options = { direction: 'inbound', onIncomingStream }
        const muxer = yamux()({ logger }).createStreamMuxer(options)
        muxer.sink(wholeOf(wire)).catch(() => socket.terminate())
        void (async () => {
            for await (const bytes of muxer.source) wire.write(bytes.subarray())
        })().catch(() => socket.terminate())
    })
}

dial()
