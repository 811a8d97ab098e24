// Puts the backend at the other end through its paces: the jobs of ../jobs.h, and what WebSocket
// has besides bytes.
import { setTimeout as sleep } from 'node:timers/promises'

import { Reader, count64, patternOf, sha256 } from './jobs.mjs'

const BULK = 64 << 20
const PATIENCE_MS = 60000

function ensure(isTrue, what) {
    if (!isTrue) throw new Error(what)
}

// Opens a stream and sends the job, its count if it has one, and the body, then FIN.
function start({ muxer }, job, count, body) {
    const stream = muxer.newStream()
    const sent = stream.sink((async function* () {
        yield Buffer.from(job)
        if (count !== undefined) yield count64(count)
        if (body) yield* body
    })())
    sent.catch(() => {})
    return { stream, sent, reader: new Reader(stream) }
}

async function expectPattern(reader, count) {
    let total = 0
    for (const want of patternOf(count)) {
        const got = await reader.exactly(want.length)
        ensure(Buffer.compare(want, got) === 0, `a wrong byte after byte ${total}`)
        total += want.length
    }
    ensure((await reader.some()) === undefined, `more than ${count} bytes`)
}

async function echo(session, count) {
    const { sent, reader } = start(session, 'E', undefined, patternOf(count))
    await expectPattern(reader, count)
    await sent
}

async function manyStreams(session) {
    const sizes = Array.from({ length: 200 }, (_, i) => 1000 * i)
    await Promise.all(sizes.map((size) => echo(session, size)))
}

async function manyInARow(session) {
    for (let i = 0; i < 1000; i++) await echo(session, 10)
}

async function upload(session) {
    const sum = sha256()
    const body = (function* () {
        for (const bytes of patternOf(BULK)) {
            sum.update(bytes)
            yield bytes
        }
    })()
    const { reader } = start(session, 'S', BULK, body)
    const got = await reader.text()
    ensure(Buffer.compare(got, sum.digest()) === 0, 'the checksums differ')
}

async function download(session) {
    await expectPattern(start(session, 'D', BULK).reader, BULK)
}

async function halfClose(session) {
    const { reader } = start(session, 'H', undefined, patternOf(100000))
    const got = (await reader.text()).toString()
    ensure(got === '100000', `the backend counted ${got}`)
}

async function askResets(session) {
    return Number((await start(session, 'Q').reader.text()).toString())
}

async function resetByUs(session) {
    const before = await askResets(session)
    const hold = (async function* () {
        yield Buffer.from('hello')
        await new Promise(() => {})
    })()
    const { stream, reader } = start(session, 'E', undefined, hold)
    ensure((await reader.exactly(5)).length === 5, 'no echo before the reset')
    stream.abort(new Error('we have seen enough'))
    for (let i = 0; i < 500; i++) {
        if ((await askResets(session)) === before + 1) return
        await sleep(20)
    }
    throw new Error('the backend never saw the reset')
}

async function resetByBackend(session) {
    const { reader } = start(session, 'R', undefined, [Buffer.alloc(16)])
    try {
        await reader.text()
    } catch (why) {
        ensure(why.name === 'StreamResetError', `reading gave ${why.name}`)
        return
    }
    throw new Error('EOF instead of a reset')
}

async function nothingLeft({ muxer }) {
    for (let i = 0; i < 500 && muxer.streams.length > 0; i++) await sleep(20)
    ensure(muxer.streams.length === 0, `${muxer.streams.length} streams are still open`)
}

async function pingIsAnswered(session, socket) {
    const pong = new Promise((resolve) => socket.once('pong', resolve))
    socket.ping('are you there?')
    const got = (await pong).toString()
    ensure(got === 'are you there?', `the pong says ${got}`)
}

// A message in pieces with a ping between them. It is a pong of yamux that nobody asked for.
async function piecesAreJoined(session, socket) {
    const frame = Buffer.from('000200020000000000000007', 'hex')
    socket.send(frame.subarray(0, 5), { binary: true, fin: false })
    socket.ping()
    socket.send(frame.subarray(5), { binary: true, fin: true })
    await echo(session, 1000)
}

async function nothingIsNegotiated(session, socket) {
    ensure(socket.protocol === 'revdial', `the subprotocol is ${socket.protocol}`)
    ensure(socket.extensions === '', `the extensions are ${socket.extensions}`)
}

async function closeIsAnswered(session, socket) {
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.close(1000, 'done')
    const status = await closed
    ensure(status === 1000, `the other end's Close says ${status}`)
}

const checks = {
    subprotocol_and_no_extension: nothingIsNegotiated,
    echo: (session) => echo(session, 65536),
    empty_echo: (session) => echo(session, 0),
    '200_streams_at_once': manyStreams,
    '64_MB_to_the_backend': upload,
    '64_MB_from_the_backend': download,
    '64_MB_both_ways_on_one_stream': (session) => echo(session, BULK),
    half_close: halfClose,
    reset_by_us_reaches_the_backend: resetByUs,
    reset_by_the_backend_is_an_error: resetByBackend,
    '1000_streams_in_a_row': manyInARow,
    nothing_is_left_open: nothingLeft,
    ping_is_answered_with_its_payload: pingIsAnswered,
    pieces_of_a_message_are_joined: piecesAreJoined,
    close_is_answered_with_its_status: closeIsAnswered,
}

export async function runChecks(session, socket) {
    let passed = 0, failed = 0
    for (const [name, run] of Object.entries(checks)) {
        const late = sleep(PATIENCE_MS, undefined, { ref: false }).then(() => {
            throw new Error('it did not end in time')
        })
        try {
            await Promise.race([run(session, socket), late])
            console.log(`ok ${name}`)
            passed++
        } catch (why) {
            console.log(`FAIL ${name}: ${why.message}`)
            failed++
        }
        late.catch(() => {})
    }
    console.log(`${passed} passed, ${failed} failed`)
    return failed
}
