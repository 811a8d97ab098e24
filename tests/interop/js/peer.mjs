// The other end of the interoperability tests in JavaScript: libp2p's yamux on a WebSocket of the
// package ws, both as they come. It sends no Revdial-* header but the name, so that revdial applies
// the rules for stock yamux peers.
//     node peer.mjs backend --url ws://HOST:PORT/revdial --name N --token T   serves streams
//     node peer.mjs proxy --token T                                           runs checks.mjs
import { createServer } from 'node:http'
import { parseArgs } from 'node:util'
import { WebSocket, WebSocketServer } from 'ws'

import { runChecks } from './checks.mjs'
import { Reader, patternOf, sha256, yamuxOver } from './jobs.mjs'

let resets = 0

async function* answer(stream, reader) {
    const job = String.fromCharCode(...(await reader.exactly(1)))
    const count = async () => Number(Buffer.from(await reader.exactly(8)).readBigUInt64BE())
    if (job === 'E') {
        yield* reader.all()
    } else if (job === 'S') {
        const sum = sha256()
        for (let left = await count(), bytes; left > 0; left -= bytes.length) {
            bytes = await reader.upTo(left)
            if (bytes === undefined) return
            sum.update(bytes)
        }
        yield sum.digest()
    } else if (job === 'D') {
        yield* patternOf(await count())
    } else if (job === 'H') {
        let total = 0
        for await (const bytes of reader.all()) total += bytes.length
        yield Buffer.from(String(total))
    } else if (job === 'R') {
        await reader.exactly(16)
        stream.abort(new Error('asked to'))
    } else if (job === 'Q') {
        yield Buffer.from(String(resets))
    }
}

async function serve(stream) {
    try {
        await stream.sink(answer(stream, new Reader(stream)))
        await stream.closeRead()
    } catch {
        // what went wrong shows in the status
    }
    if (stream.status === 'reset') resets++
}

function backend({ url, name, token }) {
    const socket = new WebSocket(url.replace(/^http/, 'ws'), 'revdial', {
        headers: { Authorization: `Bearer ${token}`, 'Revdial-Name': name },
    })
    socket.once('open', () => yamuxOver(socket, 'inbound', (stream) => void serve(stream)))
    socket.once('error', (why) => {
        console.error(`peer: ${why.message}`)
        process.exit(1)
    })
    socket.once('close', () => process.exit(0))
}

// Takes one backend, which must ask as RFC 6455 says and for our subprotocol.
function proxy({ token }) {
    const server = createServer((request, response) => response.writeHead(404).end())
    const sockets = new WebSocketServer({
        server,
        path: '/revdial',
        perMessageDeflate: true,
        verifyClient: ({ req }) => req.headers.authorization === `Bearer ${token}`,
        handleProtocols: (protocols) => (protocols.has('revdial') ? 'revdial' : false),
    })
    sockets.once('connection', async (socket) => {
        const session = yamuxOver(socket, 'outbound')
        const failed = await runChecks(session, socket)
        process.exit(failed === 0 ? 0 : 1)
    })
    server.listen(0, '127.0.0.1', () => {
        console.log(`listening on 127.0.0.1:${server.address().port}`)
    })
}

const { values, positionals } = parseArgs({
    options: { url: { type: 'string' }, name: { type: 'string' }, token: { type: 'string' } },
    allowPositionals: true,
})
if (positionals[0] === 'backend') {
    backend(values)
} else if (positionals[0] === 'proxy') {
    proxy(values)
} else {
    console.error('usage: peer.mjs backend --url URL --name NAME --token TOKEN\n' +
        '       peer.mjs proxy --token TOKEN')
    process.exit(2)
}
