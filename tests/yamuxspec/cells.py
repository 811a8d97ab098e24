"""The cells: a stream in a state, what is sent then, and what the peer may do."""
import collections
import os
import struct

from wire import ACK, DATA, FIN, GOAWAY, PING, RST, SYN, WINDOW

FLAGS = {'': 0, 'SYN': SYN, 'ACK': ACK, 'FIN': FIN, 'RST': RST}
BODY = b'hello'
HUGE = (1 << 32) - 1

# send(session, id) does it; after is what shows the effect: 'probe' the stream, which goes on,
# 'end' its end or that of the session, 'open' a new stream, 'ack' its ACK, 'pongs' of two pings,
# nothing else. A cell that is the last of its session leaves it so that nothing else could be told.
Cell = collections.namedtuple('Cell', 'name state send after is_last allowed')


def credit(length):
    return lambda s, i: s.frame(WINDOW, 0, i, length)


def data(flags=0, body=BODY):
    return lambda s, i: s.frame(DATA, flags, i, 0, body)


def header(flags, length):
    return lambda s, i: s.frame(DATA, flags, i, length)


def flags(bits, length=0):
    return lambda s, i: s.frame(WINDOW, bits, i, length)


def of_session(kind, bits, length=0):
    return lambda s, i: s.frame(kind, bits, 0, length)


def end(s, i):
    s.finish()


def raw(octets):
    return lambda s, i: s.send(octets)


def each(*steps):
    return lambda s, i: [step(s, i) for step in steps]


def slowly(s, i):
    for octet in struct.pack('>BBHII', 0, DATA, 0, i, len(BODY)) + BODY:
        s.send(bytes([octet]))


def half_a_body(s, i):
    s.send(struct.pack('>BBHII', 0, DATA, 0, i, 50) + BODY)


# Roles: b the peer is a backend, p it is a proxy.
MORE = [
    ('version 1', 'bp', 'none', raw(b'\1' + bytes(11)), 'pongs', 'GA1'),
    ('type 4', 'bp', 'none', of_session(4, 0), 'pongs', 'GA1'),
    ('flags 0xfff0', 'bp', 'est', flags(0xfff0, 1), 'probe', 'ok'),
    ('Data on stream 0', 'bp', 'none', lambda s, i: s.frame(DATA, 0, 0, 0, BODY), 'pongs', 'GA1'),
    ('WindowUpdate on stream 0', 'bp', 'none', of_session(WINDOW, 0, 1), 'pongs', 'GA1'),
    ('ping on a stream', 'bp', 'est', lambda s, i: s.frame(PING, SYN, i, 77), 'probe', 'ok'),
    ('pong without a ping', 'bp', 'est', of_session(PING, ACK, 77), 'probe', 'ok'),
    ('ping without a flag', 'bp', 'est', of_session(PING, 0, 77), 'probe', 'ok'),
    ('GoAway 0', 'bp', 'est', of_session(GOAWAY, 0), 'probe', 'ok'),
    ('GoAway 0 twice', 'bp', 'est', each(*2 * [of_session(GOAWAY, 0)]), 'probe', 'ok'),
    ('GoAway 1', 'bp', 'est', of_session(GOAWAY, 0, 1), 'end', 'closed'),
    ('GoAway 2', 'bp', 'est', of_session(GOAWAY, 0, 2), 'end', 'closed'),
    ('GoAway of an unknown code', 'bp', 'est', of_session(GOAWAY, 0, HUGE), 'end', 'closed'),
    ('empty Data', 'bp', 'est', data(0, b''), 'probe', 'ok'),
    ('empty WindowUpdate', 'bp', 'est', credit(0), 'probe', 'ok'),
    ('most credit there is', 'bp', 'est', credit(HUGE - 262144), 'probe', 'ok'),
    ('more credit than that', 'bp', 'est', credit(HUGE), 'probe', 'GA1'),
    ('SYN with too much credit', 'b', 'never', flags(SYN, HUGE), 'pongs', 'GA1'),
    ('header of Data beyond the credit', 'bp', 'est', header(0, 1 << 25), 'end', 'GA1'),
    ('header of a SYN beyond the credit', 'b', 'never', header(SYN, 262145), 'pongs', 'GA1'),
    ('the whole window in one frame', 'bp', 'est', data(0, bytes(262144 - 64)), 'probe', 'data'),
    ('SYN with the whole window', 'b', 'never', data(SYN, bytes(262144)), 'open', 'open'),
    ('SYN with the highest id', 'b', 'highest', data(SYN), 'open', 'open'),
    ('SYN before that of a lower id', 'b', 'lower', data(SYN), 'open', 'open'),
    ('SYN, body and FIN in one frame', 'b', 'never', data(SYN | FIN), 'open', 'open,EOF'),
    ('SYN and RST in one frame', 'b', 'never', flags(SYN | RST), 'pongs', 'ok'),
    ('SYN, and no byte', 'b', 'never', flags(SYN), 'ack', 'ACK'),
    ('ACK and body in one frame', 'p', 'syn', data(ACK), 'probe', 'data'),
    ('ACK and RST in one frame', 'p', 'syn', flags(ACK | RST), 'end', 'reset'),
    ('FIN and RST in one frame', 'bp', 'est', flags(FIN | RST), 'end', 'EOF|reset'),
    ('body, FIN, then RST', 'bp', 'est', each(data(), flags(FIN), flags(RST)), 'end',
     'data,EOF|reset'),
    ('a header byte by byte', 'bp', 'est', slowly, 'probe', 'data'),
    ('the connection ends', 'bp', 'est', end, 'end', 'closed'),
    ('the connection ends in a header', 'bp', 'est', each(raw(bytes(6)), end), 'end', 'closed'),
    ('the connection ends in a body', 'bp', 'est', each(half_a_body, end), 'end', 'closed'),
    ('the connection ends after a FIN', 'bp', 'est', each(data(), flags(FIN), end), 'end',
     'closed,data,EOF'),
]
LAST = 'GoAway 0', 'GoAway 0 twice', 'SYN, and no byte'


def sender(frame):
    kind, _, flag = frame.partition('+')
    if kind == 'DATA':
        return data(FLAGS[flag])
    if flag == 'SYN':
        return each(flags(SYN), data())
    return flags(FLAGS[flag], 9 if flag in ('', 'ACK') else 0)


def after(frame, state):
    """What shows the effect of a frame of the matrix."""
    is_live = state in ('syn', 'est', 'lfin', 'rfin')
    if not is_live:
        return 'open' if frame.endswith('SYN') else 'pongs'
    if frame.endswith('RST') or frame.endswith('FIN') and state != 'rfin':
        return 'end'
    return 'probe'


def of_matrix(role):
    """The rows of matrix.txt for a role: a row for proxies stands behind that for all."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'matrix.txt')) as file:
        rows = [line.split() for line in file if line.strip() and line[0] != '#']
    allowed = {}
    for row in rows[1:]:
        if role == 'proxy' or row[0] not in allowed:
            allowed[row[0]] = row[1:]
    for frame, words in allowed.items():
        for state, word in zip(rows[0][1:], words):
            if role == 'proxy' or state != 'syn':
                name = '%s %s' % (frame, state)
                yield Cell(name, state, sender(frame), after(frame, state), False, word)


def of_role(role):
    yield from of_matrix(role)
    for name, roles, state, send, shows, word in MORE:
        if role[0] in roles:
            yield Cell(name, state, send, shows, name in LAST, word)
