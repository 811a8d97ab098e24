// What both roles share: the jobs of ../jobs.h, the bytes that a seed decides, and a yamux session
// on a WebSocket.
import { yamux } from '@chainsafe/libp2p-yamux'
import { createHash } from 'node:crypto'
import { createWebSocketStream } from 'ws'

// An endless stream of bytes: xorshift64*, little-endian, in two halves of 32 bits.
export class Pattern {
    constructor(seed) {
        const state = ((BigInt(seed) + 1n) * 0x9e3779b97f4a7c15n) & 0xffffffffffffffffn
        this.hi = Number(state >> 32n)
        this.lo = Number(state & 0xffffffffn)
        this.word = new Uint8Array(8)
        this.view = new DataView(this.word.buffer)
        this.left = 0
    }

    next() {
        let { hi, lo } = this
        lo ^= (lo >>> 12) | (hi << 20)
        hi ^= hi >>> 12
        hi ^= (hi << 25) | (lo >>> 7)
        lo ^= lo << 25
        lo ^= (lo >>> 27) | (hi << 5)
        hi ^= hi >>> 27
        this.hi = hi
        this.lo = lo
        // state * 0x2545F4914F6CDD1D, of which 64 bits are kept
        const [a, b, c, d] = [lo & 0xffff, lo >>> 16, 0xdd1d, 0x4f6c]
        const low = a * c
        const middle = b * c + a * d + Math.floor(low / 65536)
        const carry = b * d + Math.floor(middle / 65536)
        const high = (Math.imul(hi, 0x4f6cdd1d) + Math.imul(lo, 0x2545f491) + carry) | 0
        this.view.setUint32(0, ((middle << 16) | (low & 0xffff)) >>> 0, true)
        this.view.setUint32(4, high >>> 0, true)
        this.left = 8
    }

    take(count) {
        const bytes = new Uint8Array(count)
        for (let i = 0; i < count; i++) {
            if (this.left === 0) this.next()
            bytes[i] = this.word[8 - this.left--]
        }
        return bytes
    }
}

// So many bytes of a pattern, in pieces.
export function* patternOf(count) {
    const pattern = new Pattern(count)
    for (let left = count; left > 0; left -= 65536) yield pattern.take(Math.min(left, 65536))
}

// Reads a stream in pieces of a size that the caller wants.
export class Reader {
    constructor(stream) {
        this.source = stream.source[Symbol.asyncIterator]()
        this.rest = new Uint8Array(0)
    }

    // Some bytes, or undefined at EOF.
    async some() {
        if (this.rest.length > 0) {
            const bytes = this.rest
            this.rest = new Uint8Array(0)
            return bytes
        }
        const { done, value } = await this.source.next()
        return done ? undefined : value.subarray()
    }

    // Up to so many bytes, or undefined at EOF.
    async upTo(count) {
        const bytes = await this.some()
        if (bytes === undefined || bytes.length <= count) return bytes
        this.rest = bytes.subarray(count)
        return bytes.subarray(0, count)
    }

    async exactly(count) {
        const bytes = new Uint8Array(count)
        for (let at = 0; at < count;) {
            const piece = await this.upTo(count - at)
            if (piece === undefined) throw new Error(`EOF after ${at} of ${count} bytes`)
            bytes.set(piece, at)
            at += piece.length
        }
        return bytes
    }

    async *all() {
        for (let bytes; (bytes = await this.some()) !== undefined;) yield bytes
    }

    async text() {
        const pieces = []
        for await (const bytes of this.all()) pieces.push(bytes)
        return Buffer.concat(pieces)
    }
}

export function sha256() {
    return createHash('sha256')
}

export function count64(count) {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64BE(BigInt(count))
    return bytes
}

const quiet = Object.assign(() => {}, { error() {}, trace() {}, enabled: false })

// A yamux session over a WebSocket. `direction` is 'outbound' for the yamux client.
export function yamuxOver(socket, direction, onIncomingStream) {
    const bytes = createWebSocketStream(socket)
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
    return { muxer, ended }
}
