"""The jobs: each gets a link, and returns 'ok' or says in a word what went otherwise."""
import hashlib
import os
import signal
import socket
import threading
import time

from link import PATIENCE, Fault, ending, exactly, finish, reset, send

BULK = os.urandom(64 << 20)
BACK = BULK[::-1]
SOME = BULK[:8 << 20]
STREAMS = 256  # as many as a stock peer may open, and more of ours to a stock peer do not open


class Sender(threading.Thread):
    """Sends on one end while others read. Its fault shows when it is joined."""

    def __init__(self, end, data):
        super().__init__(daemon=True)
        self.end, self.data, self.fault = end, data, None
        self.start()

    def run(self):
        try:
            send(self.end, self.data)
        except (Fault, OSError) as why:  # also of an end that was closed meanwhile
            self.fault = why

    def done(self):
        self.join()
        if self.fault:
            raise self.fault


def digest(end, count):
    sum_of = hashlib.sha256()
    while count > 0:
        data = exactly(end, min(count, 1 << 20))
        sum_of.update(data)
        count -= len(data)
    return sum_of.digest()


def check_bytes(end, data):
    if digest(end, len(data)) != hashlib.sha256(data).digest():
        raise Fault('wrong bytes')


def check_end(end, how='EOF'):
    got = ending(end)
    if got != how:
        raise Fault(got)


def exchange(ours, theirs, data=b'x'):
    for source, sink in ((ours, theirs), (theirs, ours)):
        sender = Sender(source, data)
        check_bytes(sink, data)
        sender.done()


def one_byte(link):
    ours, theirs = link.pair()
    exchange(ours, theirs)
    finish(ours)
    check_end(theirs)
    finish(theirs)
    check_end(ours)


def bulk(link):
    """64 MB both ways at the same time. Nobody finishes before all is there."""
    ours, theirs = link.pair()
    senders = Sender(ours, BULK), Sender(theirs, BACK)
    there = []
    reader = threading.Thread(target=lambda: there.append(digest(theirs, len(BULK))), daemon=True)
    reader.start()
    check_bytes(ours, BACK)
    reader.join(PATIENCE)
    for sender in senders:
        sender.done()
    if there != [hashlib.sha256(BULK).digest()]:
        raise Fault('wrong bytes')
    finish(ours)
    finish(theirs)
    check_end(ours)
    check_end(theirs)


def half_close(first, second):
    finish(first)
    check_end(second)
    sender = Sender(second, SOME)
    check_bytes(first, SOME)
    sender.done()
    finish(second)
    check_end(first)


def fin_ours(link):
    """Our end finishes, and 8 MB of theirs follow."""
    half_close(*link.pair())


def fin_theirs(link):
    half_close(*reversed(link.pair()))


def reset_ours(link):
    """Our side resets a stream: how does their library end it?"""
    ours, theirs = link.pair()
    exchange(ours, theirs)
    reset(ours)
    check_end(theirs, 'reset')


def reset_theirs(link):
    ours, theirs = link.pair()
    exchange(ours, theirs)
    reset(theirs)
    check_end(ours, 'reset')


def slow_reader(link, source, sink):
    """While 64 MB wait for a reader, other streams go on; then all of it arrives."""
    sender = Sender(source, BULK)
    check_bytes(sink, BULK[:1 << 16])
    for _ in range(4):
        exchange(*link.pair(), BULK[:1 << 20])
    if not sender.is_alive():
        raise Fault('unbounded')
    check_bytes(sink, BULK[1 << 16:])
    sender.done()


def slow_ours(link):
    ours, theirs = link.pair()
    slow_reader(link, theirs, ours)


def slow_theirs(link):
    ours, theirs = link.pair()
    slow_reader(link, ours, theirs)


def streams(link):
    """256 at once, each used; the next one is refused, and takes nothing from these."""
    pairs = []
    for _ in range(STREAMS):
        pairs.append(link.pair())
        exchange(*pairs[-1], BULK[:1000])
    try:
        one_more = how_refused(link)
    finally:
        for pair in pairs:
            exchange(*pair)
    for pair in pairs:
        for end in pair:
            finish(end)
        for end in pair:
            check_end(end)
    if one_more != 'waits':
        until = time.monotonic() + PATIENCE
        while not link.try_pair(PATIENCE):
            if time.monotonic() > until:
                raise Fault('no stream')
    return one_more


def how_refused(link):
    """A client whose stream is one too many. At our proxy it is not told from the target's end."""
    try:
        client = link.client()
        client.settimeout(link.patience)
        send(client, b'one more')
        how = ending(client)
    except (ConnectionError, Fault):
        return 'ok'
    if how == 'hangs':
        return 'waits'
    return 'EOF' if how == 'EOF' and link.role == 'proxy' else 'ok'


def pings(link):
    """Each side's pings are answered, on an idle session."""
    until = time.monotonic() + PATIENCE
    ours, theirs = ('down', 'up') if link.role == 'backend' else ('up', 'down')
    while len(link.tap.answered(ours)) < 3 or not link.tap.answered(theirs):
        if time.monotonic() > until:
            raise Fault('%d of ours, %d of theirs answered' % (
                len(link.tap.answered(ours)), len(link.tap.answered(theirs))))
        time.sleep(0.02)
    exchange(*link.pair())


def quiet(link):
    """A client that sends nothing: is its stream accepted all the same?"""
    ours = 'down' if link.role == 'backend' else 'up'
    before, answered = link.tap.acks, len(link.tap.answered(ours))
    link.client()
    until = time.monotonic() + PATIENCE
    while link.tap.acks == before:
        if len(link.tap.answered(ours)) > answered + 2:
            raise Fault('late')  # it has had the time of these pings
        if time.monotonic() > until:
            raise Fault('hangs')
        time.sleep(0.02)


def slices(link):
    """20,000 bytes each way over a connection that brings one byte at a time."""
    ours, theirs = link.pair()
    exchange(ours, theirs, BULK[:20000])
    finish(ours)
    check_end(theirs)
    finish(theirs)
    check_end(ours)


def both_ways(link, disturb):
    """8 MB each way, on two streams: whoever sends on a socket takes its error from who reads.
    Returns the reading ends and the senders; what happens comes after a megabyte."""
    up, down = link.pair(), link.pair()
    senders = Sender(up[0], SOME), Sender(down[1], SOME)
    ends = {'theirs': up[1], 'ours': down[0]}
    for end in ends.values():
        check_bytes(end, SOME[:1 << 20])
    disturb()
    return ends, senders


def stop(link, program):
    """A program stands still for a moment, and nothing is lost."""
    def pause():
        program.signal(signal.SIGSTOP)
        time.sleep(1)
        program.signal(signal.SIGCONT)
    ends, senders = both_ways(link, pause)
    for end in ends.values():
        check_bytes(end, SOME[1 << 20:])
    for sender in senders:
        sender.done()


def stop_ours(link):
    stop(link, link.ours)


def stop_theirs(link):
    stop(link, link.theirs)


def prefix_and_error(whose, end):
    """What comes is what was sent, and its end is no EOF."""
    at = 1 << 20
    try:
        while data := end.recv(1 << 20):
            if data != SOME[at:at + len(data)]:
                raise Fault('wrong bytes' if whose == 'theirs' else 'ours reads wrong bytes')
            at += len(data)
        raise Fault('EOF' if whose == 'theirs' else 'ours reads EOF')
    except socket.timeout:
        raise Fault('hangs')
    except ConnectionError:
        pass


def broken(link, how):
    ends, _ = both_ways(link, lambda: setattr(link.tap, 'last', how))
    for whose in ('ours', 'theirs'):
        prefix_and_error(whose, ends[whose])


def fin_in_frame(link):
    """A middlebox ends the connection in the middle of a frame."""
    broken(link, 'FIN')


def reset_in_frame(link):
    broken(link, 'RST')


def kill(program, source, sink):
    """A program dies in mid-transfer: bytes that were cut must not look complete."""
    Sender(source, BULK)
    check_bytes(sink, BULK[:1 << 20])
    program.signal(signal.SIGKILL)
    check_end(sink, 'reset')


def kill_ours(link):
    ours, theirs = link.pair()
    kill(link.ours, ours, theirs)


def kill_theirs(link):
    ours, theirs = link.pair()
    kill(link.theirs, theirs, ours)


def drain(link):
    """TERM to our side: new streams are refused, the one that runs ends well, and so do we."""
    ours, theirs = link.pair()
    exchange(ours, theirs)
    link.ours.signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE
    while is_accepted(link):
        if time.monotonic() > until:
            raise Fault('still opens')
    exchange(ours, theirs, BULK[:1 << 20])
    finish(ours)
    check_end(theirs)
    finish(theirs)
    check_end(ours)
    status = link.ours.wait()
    if status != 0:
        raise Fault('exit %s' % status)


def is_accepted(link):
    try:
        pair = link.try_pair(PATIENCE)
    except ConnectionError:
        return False
    for end in pair or ():
        end.close()
    return pair is not None


def goaway(link):
    """The same after they have announced drain: then our GoAway comes while the stream runs."""
    try:
        drain(link)
    except Fault as why:
        if str(why) in ('EOF', 'reset'):
            raise Fault('ends')
        raise


# Jobs by the options of the link that they need; those of a line share one.
JOBS = [
    ({}, [one_byte, fin_ours, fin_theirs, reset_ours, reset_theirs, bulk, slow_ours, slow_theirs]),
    ({}, [streams]),
    ({'slice': 0}, [pings, stop_ours, stop_theirs, quiet]),
    ({'slice': 0}, [fin_in_frame]),
    ({'slice': 0}, [reset_in_frame]),
    ({'slice': 1}, [slices]),
    ({}, [kill_ours]),
    ({}, [kill_theirs]),
    ({}, [drain]),
    ({'features': 'drain'}, [goaway]),
]
