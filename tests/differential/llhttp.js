// What llhttp reads in a connection's bytes, as Node's http module uses it, and strictly. Same
// input and output as ours.c, or, with a word, as ours_response.c. It gets byte by byte, so that it
// is known where a message ends.
'use strict'
const { HTTPParser, methods } = require('_http_common')

const hex = text => '=' + Buffer.from(text, 'latin1').toString('hex')

// The parser of one connection, and what it has found.
function start (found) {
  const parser = new HTTPParser()
  let head = null
  let fields = []
  let url = ''
  let body = []
  parser.initialize(HTTPParser.REQUEST, {})
  parser[HTTPParser.kOnHeaders] = (more, moreUrl) => {
    if (head === null) {
      fields = fields.concat(more)
      url += moreUrl
    }
  }
  parser[HTTPParser.kOnHeadersComplete] = (major, minor, all, method, target) => {
    head = { method: methods[method] || String(method), target: url + (target || ''),
             fields: fields.concat(all || []) }
    return 0
  }
  parser[HTTPParser.kOnBody] = (buffer, offset, length) => {
    body.push(Buffer.from(offset === undefined ? buffer : buffer.slice(offset, offset + length)))
  }
  parser[HTTPParser.kOnMessageComplete] = () => {
    found.push({ ...head, body: Buffer.concat(body) })
    head = null
    fields = []
    url = ''
    body = []
  }
  return parser
}

function written (request, end) {
  let host = ''
  let text = ''
  for (let i = 0; i + 1 < request.fields.length; i += 2) {
    if (request.fields[i].toLowerCase() === 'host') host = request.fields[i + 1]
    text += request.fields[i] + ':' + request.fields[i + 1] + '\n'
  }
  return [hex(request.method), hex(request.target), hex(host), '=' + request.body.toString('hex'),
          end, hex(text), ''].join(' ')
}

function judge (data) {
  const found = []
  const parser = start(found)
  let line = ''
  for (let at = 0; at < data.length; at++) {
    const before = found.length
    const result = parser.execute(data.subarray(at, at + 1))
    if (found.length > before) line += written(found[before], at + 1)
    if (result instanceof Error) return line + 'refused ' + result.code
  }
  return line + 'more'
}

// The next head of a response: its status, and what became of it.
function responseHead (data, from) {
  const parser = new HTTPParser()
  let status = 0
  parser.initialize(HTTPParser.RESPONSE, {})
  parser[HTTPParser.kOnHeaders] = () => {}
  parser[HTTPParser.kOnHeadersComplete] = (major, minor, all, method, target, code) => {
    status = code
    return 2 // what follows is no body
  }
  for (let at = from; at < data.length; at++) {
    const result = parser.execute(data.subarray(at, at + 1))
    if (result instanceof Error) return { status: 0, rest: 'refused ' + result.code }
    if (status) return { status, end: at + 1 }
  }
  return { status: 0, rest: 'more' }
}

function judgeResponse (data) {
  let line = ''
  for (let at = 0; ;) {
    const head = responseHead(data, at)
    if (!head.status) return line + head.rest
    line += head.status + ' ' + head.end + ' '
    if (head.status === 101 || head.status >= 200) return line + 'over'
    at = head.end
  }
}

const reads = process.argv.length > 2 ? judgeResponse : judge
let waiting = Buffer.alloc(0)
process.stdin.on('data', chunk => {
  waiting = Buffer.concat([waiting, chunk])
  let out = ''
  while (waiting.length >= 4 && waiting.length >= 4 + waiting.readUInt32BE(0)) {
    const end = 4 + waiting.readUInt32BE(0)
    out += reads(waiting.subarray(4, end)) + '\n'
    waiting = waiting.subarray(end)
  }
  process.stdout.write(out)
})
