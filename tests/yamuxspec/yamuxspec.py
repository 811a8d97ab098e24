#!/usr/bin/env python3
"""What a yamux peer does with each frame in each state of a stream, and what it may do.

    tests/yamuxspec/yamuxspec.py backend [OPTION...] -- COMMAND...   the peer dials the runner
    tests/yamuxspec/yamuxspec.py proxy [OPTION...] -- COMMAND...     the runner dials the peer

The runner speaks frames behind an HTTP upgrade, with --carrier ws in messages of a WebSocket, with
--bare without any of this. It also holds the far end of each stream, so that it sees what the peer
tells its application. COMMAND is run anew for each session that a cell has ended.

  backend  In COMMAND, {server} becomes the address where the runner waits for the peer, {target}
           that to which the peer has to connect each stream. The runner opens the streams.
  proxy    COMMAND prints 'listening on HOST:PORT' for backends, and then again for clients: each
           that connects there becomes a stream. The peer opens the streams.

Without COMMAND the peer runs already: --listen and --target are these two addresses for a backend,
which has to come back after each session, --connect and --clients those of a proxy.

What is allowed is in matrix.txt and in cells.py. --peer NAME names a library whose deviations, in
deviations.txt, are expected: a cell then fails if it does not deviate as it says there.
Prints a line for each cell, and 'N passed, N failed' at the end.
"""
import argparse
import os
import re
import signal
import sys
import tempfile

sys.dont_write_bytecode = True  # nothing is written beside the sources

from cells import BODY, of_role  # noqa: E402
from peers import CELLS_A_SESSION, Backend, Proxy  # noqa: E402
from wire import ACK, DATA, PATIENCE, RST, Silent  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
QUIET = 2  # seconds without any effect: then there is none
PROBE = b'probe!'


def joined(*words):
    return ','.join(w for w in words if w)


class Play:
    """A cell that is played: the stream i, its far end app, and what there was before."""

    def __init__(self, peer, cell):
        self.peer, self.cell = peer, cell
        self.s = peer.session
        self.i, self.app = getattr(peer, cell.state)()
        self.since = len(self.s.frames)
        self.before = len(self.app.bytes) if self.app else 0
        self.had_eof = self.app is not None and self.app.is_eof

    def came(self):
        return self.app.bytes[self.before:]

    def wait(self, is_done, what):
        self.peer.wait(is_done, what, self.app, self.peer.patience)

    def is_reset_by_peer(self):
        return self.s.has_flag(self.i, RST, self.since)

    def has_new_eof(self):
        return self.app.is_eof and not self.had_eof

    def is_probed(self):
        return self.came().endswith(PROBE) or PROBE in self.s.data_of(self.i, self.since)

    def has_ended(self):
        return self.app.is_reset or self.has_new_eof()

    def probe(self):
        """The stream shows what happened: bytes that follow in it, or its end."""
        if self.cell.state == 'rfin':
            self.peer.settle()  # what comes back now was sent after the frame was read
            self.app.send(PROBE)
        elif self.cell.after == 'probe':
            self.s.frame(DATA, 0, self.i, 0, PROBE)
        self.wait(lambda: self.s.how_it_ended() or self.is_probed() or self.has_ended() or
                  self.is_reset_by_peer(), 'nothing')
        is_over = self.has_ended() or self.is_reset_by_peer()
        if is_over and not self.s.has_finished:
            self.peer.settle()  # did the session end, or the stream alone?
        body = 'data' if self.came() not in (b'', PROBE) else ''
        if self.s.how_it_ended() or self.s.has_finished:
            return self.end_of_session(body)
        if self.is_probed():
            return body or 'ok'
        if self.app.is_reset:
            return 'reset'
        return joined(body, 'EOF') if self.has_new_eof() else 'RST'

    def end_of_session(self, body):
        """How the session ended, and whether its stream ended as if it had been finished."""
        self.wait(lambda: self.app.is_over() and self.s.how_it_ended(), 'a hanging stream')
        eof = 'EOF' if self.has_new_eof() else ''
        return joined(self.s.how_it_ended(), body if eof else '', eof)

    def pongs(self):
        self.peer.settle()
        return self.s.how_it_ended() or ('RST' if self.is_reset_by_peer() else 'ok')

    def open(self):
        """The first bytes of the stream reach the target."""
        self.app = self.peer.accept(self.i, self.since)
        if not self.app:
            return self.pongs()
        want = 262144 if 'window' in self.cell.name else len(BODY)
        self.wait(lambda: self.s.how_it_ended() or len(self.app.bytes) >= want or
                  self.app.is_over(), 'no byte')
        if 'EOF' in self.cell.allowed:
            self.wait(self.app.is_over, 'no EOF')
        eof = 'EOF' if self.app.is_eof else ''
        return self.s.how_it_ended() or joined('open' if len(self.app.bytes) >= want else '', eof)

    def ack(self):
        self.wait(lambda: self.s.how_it_ended() or
                  self.s.has_flag(self.i, ACK | RST, self.since), 'no ACK')
        is_ack = self.s.has_flag(self.i, ACK, self.since)
        return self.s.how_it_ended() or ('ACK' if is_ack else 'RST')

    def run(self):
        self.cell.send(self.s, self.i)
        return {'probe': self.probe, 'end': self.probe, 'pongs': self.pongs, 'open': self.open,
                'ack': self.ack}[self.cell.after]()


def play(peer, cell, outcome):
    """Says what the peer did. For an outcome that is the lack of an effect it waits a moment."""
    peer.patience = QUIET if re.match('n/a|ok|no', outcome) else PATIENCE
    needs_fresh = cell.state not in ('est', 'lfin', 'rfin', 'syn')
    peer.take(needs_fresh)
    if cell.is_last or needs_fresh:
        peer.cells = CELLS_A_SESSION
    is_set = False
    try:
        played = Play(peer, cell)
        is_set = True
        return played.run()
    except Silent as why:
        peer.session.finish()
        return str(why) if is_set else 'n/a'


def deviations(name, role):
    """The outcomes of a library's cells that deviate, on either carrier."""
    table = {}
    with open(os.path.join(HERE, 'deviations.txt')) as file:
        for line in file:
            words = [word.strip() for word in line.split('|')]
            if line[0] != '#' and words[:2] == [name, role]:
                table[words[2]] = '|'.join(words[3:])
    return table


def cells_played(args):
    """Plays all cells. Yields the name, what the peer did, whether that is expected, and a line."""
    peer = {'backend': Backend, 'proxy': Proxy}[args.role](args)
    known = deviations(args.peer, args.role)
    try:
        for cell in of_role(args.role):
            if args.only and args.only not in cell.name:
                continue
            want = known.get(cell.name, cell.allowed)
            got = play(peer, cell, want)
            is_fine = got in want.split('|')
            note = '' if got in cell.allowed.split('|') else '  (allowed: %s)' % cell.allowed
            if not is_fine and cell.name in known:
                note += '  (known for: %s)' % want
            line = '%-4s %s: %s%s' % ('ok' if is_fine else 'FAIL', cell.name, got, note)
            yield cell.name, got, is_fine, line
    finally:
        peer.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('role', choices=('backend', 'proxy'))
    for name in ('peer', 'listen', 'target', 'connect', 'clients', 'log', 'only'):
        parser.add_argument('--' + name)
    parser.add_argument('--bare', action='store_true')
    parser.add_argument('--carrier', choices=('raw', 'ws'), default='raw')
    words = sys.argv[1:]
    at = words.index('--') if '--' in words else len(words)
    args = parser.parse_args(words[:at])
    args.command = words[at + 1:]
    args.log = args.log or os.path.join(tempfile.gettempdir(), 'yamuxspec.%d.log' % os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the peer, too
    verdicts = []
    for _, _, is_fine, line in cells_played(args):
        print(line, flush=True)
        verdicts.append(is_fine)
    print('%d passed, %d failed' % (verdicts.count(True), verdicts.count(False)))
    return False in verdicts


if __name__ == '__main__':
    sys.exit(main())
