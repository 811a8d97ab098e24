#!/usr/bin/env python3
"""The HTTP reader of --http beside llhttp (Node's parser) and Go's net/http: make differential

    run.py [--count N] [--seed S]      requests, and then the answers of responses.py

The same bytes go to all three: the corpus of tests/e2e, what is in SEEDS, and N changes of these by
a seed. Each reads them as one connection, whose requests follow each other. A request that our
reader takes must be the same one to the others: its method, target, Host and body, the place where
the next one begins, and for llhttp its fields. What our reader refuses the others may take. Where
they refuse what ours takes, EXPLAINED has the reason, or it is a failure.
"""
import argparse
import collections
import os
import random
import re
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))

from http_peers import corpus  # noqa: E402

BUILD = os.path.join(os.environ.get("REVDIAL_BUILD", "build"), "differential")
SHOWN = 5  # failures of a check that are printed
Request = collections.namedtuple("Request", "method target host body end fields")
NEXT = b"GET /next HTTP/1.1\r\nHost: next.test\r\n\r\n"

SEEDS = [
    b"GET /a?b={c}|d^e&f=%20 HTTP/1.1\r\nHost: a.test:8080\r\nX: \x80\xff y\t z \r\n\r\n",
    b"GET HTTP://A.TEST?y HTTP/1.1\r\nhost: a.test\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nConnection: x, Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"OPTIONS / HTTP/1.1\r\nHost:a.test.\r\nConnection: , keep-alive,,TE ,\r\nTE: trailers\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX_Y:\r\nEmpty:\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:\tCHUNKED\r\n\r\nA;x;y=z;q=\"a \\\" b;\"\r\n"
    b"0123456789\r\n00001\r\nb\r\n0;last\r\nX-Sum: 1\r\nY:\r\n\r\n",
    b"DELETE /x HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n\r\n",
]

# What changes put in: what frames, ends or hides something.
WORDS = [bytes([c]) for c in range(0, 256, 5)] + [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b",
    b"\x0c", b"\x7f", b"\x85", b"\xa0", b"0", b"1", b"00", b"-", b"+", b"0x", b"_", b"\"", b"\\",
    b"chunked", b", chunked", b"identity", b"gzip, ", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"Content-Length:\r\n", b"content-length: 05\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n",
    b"Upgrade: x\r\n", b"Host: b.test\r\n", b"Host:\r\n", b"X: y\r\n z\r\n", b"HTTP/1.0",
    b"HTTP/1.1", b"HTTP/0.9", b"%zz", b"%", b"#", b"//b.test/", b"http://b.test", b"*", b"@", b"[",
    b"0\r\n\r\n", b"5\r\nhello\r\n", b"1;\r\na\r\n", b"FFFFFFFFFFFFFFFF", b"Expect: x\r\n",
    b"Trailer: Host\r\n", b"get", b"PRI", b"HEAD", b"TRACE", b"PATCH", b"QUERY", b"NEW-ONE",
]


# ---- what is explained

def has_unknown_method(_, requests, i, why):
    return "INVALID_METHOD" in why


def has_body_and_upgrade(_, requests, i, why):
    fields = dict(requests[i - 1].fields) if i else {}
    return why == "more" and b"upgrade" in fields and requests[i - 1].body != b""


def has_more_than_ascii_in_its_target(_, requests, i, why):
    return "INVALID_URL" in why and any(byte > 127 for byte in requests[i].target)


def has_ended_the_connection(_, requests, i, why):
    return why == "refused HPE_CLOSED_CONNECTION"


def has_tab_behind_length(message, requests, i, why):
    return "INVALID_CONTENT_LENGTH" in why and re.search(rb"\d\t+[ \t]*\r\n", message)


def begins_with_an_empty_line(message, requests, i, why):
    return message[requests[i - 1].end if i else 0:].startswith(b"\r\n") and "malformed" in why


# (judge, test, reason). The test gets the message, our requests, which of them the other one does
# not have, and what became of the rest there.
EXPLAINED = [
    ("llhttp", has_unknown_method, "it knows a list of methods, ours takes any word"),
    ("llhttp", has_body_and_upgrade, "Upgrade with a body: ours does not pass Upgrade on"),
    ("llhttp", has_tab_behind_length, "it takes no tab behind a Content-Length (5.5 has it)"),
    ("llhttp", has_ended_the_connection, "it sees no keep-alive where a tab follows: a close"),
    ("llhttp", has_more_than_ascii_in_its_target, "it takes ASCII alone in a target"),
    ("net/http", begins_with_an_empty_line, "an empty line first, which may be there (2.2)"),
]


# ---- changes

def change(rng, text, others, words):
    at = rng.randrange(len(text) + 1)
    to = min(len(text), at + rng.choice((1, 1, 1, 2, 4, 16)))
    kind = rng.randrange(8)
    if kind < 3:
        return text[:at] + rng.choice(words) + text[at:]
    if kind == 3:
        return text[:at] + text[to:]
    if kind == 4:
        return text[:at] + rng.choice(words) + text[to:]
    lines = text.split(b"\r\n")
    i = rng.randrange(len(lines))
    if kind == 5:
        lines.insert(rng.randrange(len(lines)), lines[i])
    elif kind == 6:
        lines.insert(i, rng.choice(rng.choice(others).split(b"\r\n")))
    else:
        lines[i] = lines[i].swapcase()
    return b"\r\n".join(lines)


def changes(rng, seeds, count, words=tuple(WORDS)):
    for _ in range(count):
        text = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = change(rng, text, seeds, words)
        yield text + rng.choice((b"", NEXT, NEXT + NEXT))


# ---- the judges

class Judge:
    def __init__(self, name, *command, read=None):
        self.name, self.command, self.read = name, command, read or parse

    def verdicts(self, messages):
        """For each message the requests that were found, and what became of the rest."""
        process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def send():
            for message in messages:
                process.stdin.write(len(message).to_bytes(4, "big") + message)
            process.stdin.close()

        threading.Thread(target=send, daemon=True).start()
        found = [self.read(line.decode()) for line in process.stdout]
        if process.wait() != 0 or len(found) != len(messages):
            raise RuntimeError(f"{self.name} ended with {process.returncode} after {len(found)}")
        return found


def parse(line):
    words = line.split(" ")
    requests = []
    while words[0].startswith("="):
        texts = [bytes.fromhex(w[1:]) for w in words[:4]]
        fields = None if words[5] == "*" else fields_of(bytes.fromhex(words[5][1:]))
        requests.append(Request(*texts[:2], texts[2].lower(), texts[3], int(words[4]), fields))
        words = words[6:]
    return requests, " ".join(words).strip()


def fields_of(text):
    pairs = [line.split(b":", 1) for line in text.split(b"\n")[:-1]]
    return [(name.lower(), value.strip(b" \t")) for name, value in pairs]


def run(*command, **options):
    subprocess.run(command, check=True, **options)


def judges(source="ours.c", *door, read=None):
    """Our reader and the others; with a door, of responses."""
    os.makedirs(BUILD, exist_ok=True)
    ours, go = os.path.join(BUILD, source[:-2]), os.path.join(BUILD, "nethttp")
    run(*os.environ.get("CC", "cc").split(), "-std=c11", "-O1", "-g", "-D_GNU_SOURCE", "-I.", "-o",
        ours, os.path.join(HERE, source))
    run("go", "build", "-o", go, os.path.join(HERE, "nethttp.go"))
    node = "node", "--no-deprecation"
    version = subprocess.check_output([*node, "-p", "process.versions.llhttp"], text=True).strip()
    return (Judge("ours", os.path.abspath(ours), *door, read=read),
            [Judge(f"llhttp {version}", *node, os.path.join(HERE, "llhttp.js"), *door, read=read),
             Judge("net/http", os.path.abspath(go), *door, read=read)])


# ---- the comparison

def difference(message, name, ours, theirs):
    """None, or what is wrong; "explained" with the reason if it is known."""
    requests, rest = ours
    for i, request in enumerate(requests):
        if i == len(theirs[0]):
            for judge, test, reason in EXPLAINED:
                if name.startswith(judge) and test(message, requests, i, theirs[1]):
                    return f"explained: {reason}"
            return f"it does not take request {i + 1}: {theirs[1]}"
        other = theirs[0][i]
        for key in Request._fields:
            mine, its = getattr(request, key), getattr(other, key)
            is_in_target = key == "host" and not its and b"://" in other.target
            if mine != its and its is not None and not is_in_target:
                return f"{key} of request {i + 1}: ours {mine!r}, its {its!r}"
    if rest == "more" and len(theirs[0]) > len(requests):
        return "it takes a request that is not complete to ours"
    return None


def compare(what, messages, ours, judge):
    """Prints the check of a judge. Returns whether it passed."""
    theirs = judge.verdicts(messages)
    taken = sum(len(requests) for requests, _ in ours)
    failures, explained, stricter = [], collections.Counter(), 0
    for message, mine, its in zip(messages, ours, theirs):
        wrong = difference(message, judge.name, mine, its)
        if wrong and wrong.startswith("explained"):
            explained[wrong] += 1
        elif wrong:
            failures.append((message, wrong))
        stricter += mine[1] == "refused" and len(its[0]) > len(mine[0])
    print(f"{'FAIL' if failures else 'ok  '} {what}, {judge.name}: {len(messages)} messages, ours "
          f"takes {taken} requests, refuses {stricter} messages of which it takes more")
    for reason, count in explained.items():
        print(f"       {count} {reason}")
    for message, wrong in failures[:SHOWN]:
        print(f"       {wrong}\n         {message!r}")
    return not failures and taken > len(messages) // 20


def requests(count, seed):
    """Prints the checks of requests. Returns which passed."""
    reader, others = judges()
    known = [text for _, text in corpus(os.path.join(HERE, "..", "e2e", "http_corpus.txt"))]
    known += [start + more for start in SEEDS for more in (b"", NEXT)]
    # Most changes of what is refused are refused, too: one half begins with what is not.
    good = [text for text, (found, _) in zip(known, reader.verdicts(known)) if found]
    rng = random.Random(seed)
    changed = list(changes(rng, good, count // 2)) + list(changes(rng, known, count // 2))
    verdicts = []
    for what, messages in (("corpus", known), (f"changes by seed {seed}", changed)):
        ours = reader.verdicts(messages)
        verdicts += [compare(what, messages, ours, judge) for judge in others]
    return verdicts


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    import responses  # it uses what is above
    verdicts = requests(args.count, args.seed) + responses.responses(args.count, args.seed)
    print(f"{verdicts.count(True)} passed, {verdicts.count(False)} failed")
    return False in verdicts


if __name__ == "__main__":
    sys.exit(main())
