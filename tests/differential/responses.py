"""What an agent reads in answers beside llhttp and Go's http.ReadResponse: a part of run.py.

An agent reads the answer to its upgrade (raw, or to a WebSocket) and that of an egress proxy to
its CONNECT. The same bytes go to all: what is in SEEDS, and N changes of these by a seed. Each head
that ours takes, interim ones and the last, must have the same status and the same end to both
others, or EXPLAINED has the reason. For what ours refuses and both others take REFUSED has it.
"""
import collections
import random
import re

from run import SHOWN, WORDS, changes, judges

Head = collections.namedtuple("Head", "status end")
DOORS = "upgrade", "websocket", "connect"
MUX = b"\0\2\0\1\0\0\0\0\0\0\0\7"

SEEDS = [
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n"
    b"Revdial-Version: 1\r\nRevdial-Session: 00c0ffee12345678\r\n"
    b"Revdial-Features: rstcode, preamble, window=65536\r\n\r\n" + MUX,
    b"HTTP/1.1 101 \r\nUPGRADE: Revdial\r\nconnection: keep-alive, upgrade\r\n"
    b"Server: caf\xc3\xa9\r\nX:\r\n\r\n" + MUX,
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    b"Sec-WebSocket-Protocol: revdial\r\n\r\n\x82\x0c" + MUX,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=x\r\n\r\n"
    b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n" + MUX,
    b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Digest realm=\"r, \\\"x\", nonce=\"00ff\", "
    b"qop=\"auth\", algorithm=SHA-256\r\nContent-Length: 13\r\nConnection: close\r\n\r\n"
    b"unauthorized\n",
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\n",
    b"HTTP/1.0 302 Found\r\nLocation: http://other.test/revdial\r\n\r\n",
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: revdial, websocket\r\nContent-Length: 0\r\n"
    b"\r\n",
    b"HTTP/1.1 200 Connection established\r\n\r\n" + MUX,
    b"HTTP/1.0 200 OK\r\nVia: 1.1 sim\r\nProxy-agent: x/1.0\r\n\r\n\x16\3\1",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 \t \r\nContent-Length: 0\r\n\r\nabc",
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n",
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n",
]
SEEDS += [
    b"HTTP/1.1 600 X\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n", b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n", b"HTTP/2.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\nX: y\n\n",
    b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
]
SEEDS += [SEEDS[8][:-16] + b"X-%d: y\r\n" % i * n + b"\r\n" for i, n in ((1, 64), (2, 65))]
SEEDS += [b"HTTP/1.1 200 OK\r\nX: " + b"y" * n + b"\r\n\r\n" for n in (8166, 8167, 9000)]
SEEDS += [b"HTTP/1.1 100 A\r\n\r\n" * n + b"HTTP/1.1 200 OK\r\n\r\n" for n in (4, 5)]

ANSWER_WORDS = WORDS + [
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 101 X\r\n", b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.0 ", b"HTTP/1.2 ", b"HTTP/2 ", b"http/1.1 ", b"200", b"101", b"099", b"600", b"999",
    b"1000", b"20", b"+20", b"\r\n ", b"Connection: Upgrade\r\n", b"Upgrade: revdial\r\n",
    b"Upgrade: websocket\r\n", b"upgrade", b"websocket", b"revdial", b"Content-Length: 0, 0\r\n",
    b"Retry-After: 1\r\n", b"WWW-Authenticate: Digest x\r\n", b"Location: /\r\n", b"\xff", b"\1",
]

# (judge, its verdict, reason): it refuses a head that ours takes.
LENGTH = "the length of a body, which is nothing to ours: it is a refusal, or behind it is a tunnel"
EXPLAINED = [
    ("llhttp", "HPE_UNEXPECTED_CONTENT_LENGTH", LENGTH),
    ("llhttp", "HPE_INVALID_CONTENT_LENGTH", LENGTH),
    ("llhttp", "HPE_INVALID_TRANSFER_ENCODING", LENGTH),
    ("llhttp", "HPE_UNEXPECTED_TRANSFER_ENCODING", LENGTH),
    ("net/http", "transfer encoding", LENGTH),
    ("net/http", "Content-Length", LENGTH),
]


# ---- what ours refuses

def fields_of(head):
    pairs = [line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line]
    return [(name.lower(), value.strip(b" \t")) for name, value in pairs]


def values_of(head, name):
    return [value for key, value in fields_of(head) if key == name]


def list_of(head, name):
    items = b",".join(values_of(head, name)).lower().split(b",")
    return [item.strip(b" \t") for item in items if item.strip(b" \t")]


def has_no_blank_behind_status(head):
    return re.match(rb"HTTP/1\.[01] \d{3}\r\n", head)


def has_other_status(head):
    return re.match(rb"HTTP/1\.[01] (?![1-5]\d\d )", head)


def has_other_version(head):
    return not re.match(rb"HTTP/1\.[01] ", head)


def is_long(head):
    return len(head) > 8192 or head.count(b"\r\n") > 66


def has_control(head):
    return re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", head)


def has_no_ascii_in_known_field(head):
    known = rb"revdial-|connection|upgrade|content-length|transfer-encoding|retry-after|www-auth" \
            rb"|authentication-info|sec-websocket|location|host|origin|expect|authorization"
    return any(re.search(rb"[\x80-\xff]", v) and re.match(known, k) for k, v in fields_of(head))


def is_interim_with_body(head):
    has_body = values_of(head, b"content-length") + values_of(head, b"transfer-encoding")
    return head[9:10] == b"1" and (head.startswith(b"HTTP/1.0") or has_body)


# In this order: (test, reason). Then there are too many interim ones, and 101.
REFUSED = [
    (has_other_version, "another version than 1.0 and 1.1 may have other rules"),
    (has_no_blank_behind_status, "no blank behind the status, which has to be there (RFC 9112 4)"),
    (has_other_status, "a status that is none (RFC 9110 15)"),
    (is_long, "more than 8192 bytes or 64 lines"),
    (has_control, "a control character in a value (RFC 9110 5.5)"),
    (has_no_ascii_in_known_field, "no ASCII in a field that ours reads"),
    (is_interim_with_body, "1xx of HTTP/1.0 or with a body (RFC 9110 15.2, 8.6)"),
]


def is_asked_switch(door, head):
    """Is it the 101 that was asked for? Fields that ours judges beyond that have no changes."""
    options = list_of(head, b"connection")
    is_list = all(re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", option) for option in options)
    if door == "connect" or not is_list or b"upgrade" not in options or b"close" in options:
        return False
    if list_of(head, b"upgrade") != [{"upgrade": b"revdial"}.get(door, b"websocket")]:
        return False
    if door == "websocket" and (
            values_of(head, b"sec-websocket-accept") != [b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
            or values_of(head, b"sec-websocket-protocol") != [b"revdial"]
            or values_of(head, b"sec-websocket-extensions")):
        return False
    ours = [(k, v) for k, v in fields_of(head) if k.startswith(b"revdial-")]
    return all(field in fields_of(SEEDS[0]) for field in ours) and len(ours) == len(set(ours))


def read(line):
    words = line.split()
    count = 0
    while count + 1 < len(words) and words[count].isdigit():
        count += 2
    heads = [Head(int(words[i]), int(words[i + 1])) for i in range(0, count, 2)]
    return heads, " ".join(words[count:])


def explained(name, why):
    for judge, verdict, reason in EXPLAINED:
        if name.startswith(judge) and verdict in why:
            return reason
    return None


def reason_to_refuse(door, message, theirs, i):
    begins = theirs[i - 1].end if i else 0
    head = message[begins:theirs[i].end]
    for test, reason in REFUSED:
        if test(head):
            return reason
    if i == 4 and theirs[i].status < 200:
        return "more than four interim ones"
    if theirs[i].status == 101 and not is_asked_switch(door, head):
        return "101 is not the switch that was asked for"
    return None


def check(door, message, ours, others, notes):
    """None, or what is wrong. `others` has for each judge its name, heads and verdict."""
    heads, rest = ours
    for name, theirs, why in others:
        for i, head in enumerate(heads):
            if i < len(theirs) and theirs[i] == head:
                continue
            reason = explained(name, why) if i == len(theirs) else None
            if not reason:
                return f"{name}: head {i + 1} is {head}, to it {theirs[i:i + 1] or why}"
            notes[f"{name} refuses: {reason}"] += 1
            return None
        if rest == "more" and len(theirs) > len(heads):
            return f"{name}: takes a head that is not complete to ours"
    if rest != "refused" or not all(len(theirs) > len(heads) for _, theirs, _ in others):
        return None
    reason = reason_to_refuse(door, message, others[0][1], len(heads))
    if not reason:
        return f"ours refuses head {len(heads) + 1}, which both take: {others[0][1][len(heads)]}"
    notes[f"ours refuses: {reason}"] += 1
    return None


def compare(door, messages, others):
    """Prints the check of a door. Returns whether it passed."""
    reader = judges("ours_response.c", door, read=read)[0]
    ours = reader.verdicts(messages)
    notes, failures = collections.Counter(), []
    for i, message in enumerate(messages):
        wrong = check(door, message, ours[i], [(n, *v[i]) for n, v in others], notes)
        if wrong:
            failures.append((message, wrong))
    taken = sum(len(heads) for heads, _ in ours)
    good = sum(any(h.status == 101 or h.status // 100 == 2 for h in heads) for heads, _ in ours)
    print(f"{'FAIL' if failures else 'ok  '} answers to {door}: {len(messages)} messages, ours "
          f"takes {taken} heads, {good} messages are good")
    for note, count in sorted(notes.items()):
        print(f"       {count} {note}")
    for message, wrong in failures[:SHOWN]:
        print(f"       {wrong}\n         {message[:400]!r}")
    return not failures and good > len(messages) // 20


def responses(count, seed):
    """Prints the checks of answers. Returns which passed."""
    short = [start for start in SEEDS if len(start) < 1000]
    messages = SEEDS + list(changes(random.Random(seed), short, count, ANSWER_WORDS))
    # What they read does not depend on the door, except that Go knows of CONNECT.
    llhttp, _ = judges("ours_response.c", DOORS[0], read=read)[1]
    of_llhttp = llhttp.name, llhttp.verdicts(messages)
    verdicts = []
    for door in DOORS:
        go = judges("ours_response.c", door, read=read)[1][1]
        others = [of_llhttp, (go.name, go.verdicts(messages))]
        verdicts.append(compare(door, messages, others))
    return verdicts
