"""A peer under test: its sessions, one at a time, and streams in each state. A state gives the id
and the far end of a stream, or None where there is none."""
import socket

from wire import (ACK, DATA, FIN, PATIENCE, PING, RST, SYN, WINDOW, Program, Session, Silent,
                  Socket, address_of, answer_upgrade, ask_upgrade, connect, listen, wait)

CELLS_A_SESSION = 8  # a peer may limit pings, resets and frames without effect
HIGHEST = (1 << 32) - 1


class Peer:
    """What does not depend on who dials whom."""

    def __init__(self, args):
        self.args = args
        self.program = None
        self.session = None
        self.cells = 0
        self.apps = []

    def take(self, is_fresh):
        """A session that lives, the one that is there if that will do."""
        s = self.session
        is_used_up = self.cells >= CELLS_A_SESSION
        if is_fresh or is_used_up or not s or s.how_it_ended() or s.has_finished:
            self.end()
            self.cells = 0
            self.start()
        self.cells += 1

    def end(self):
        for s in self.apps + [self.session] * bool(self.session):
            s.close()
        self.apps = []
        self.session = None
        if self.program:
            self.program.end()
            self.program = None

    def run(self, words=()):
        command = self.args.command
        for word, value in words:
            command = [c.replace(word, value) for c in command]
        if command:
            self.program = Program(command, self.args.log)
        return self.program

    def wait(self, is_done, what, app=None, seconds=PATIENCE):
        wait([self.session] + [app] * bool(app), is_done, seconds, what)

    def watch(self, sock):
        app = Socket(sock)
        self.apps.append(app)
        return app

    def est(self):
        i, app = self.open()
        self.exchange(i, app)
        return i, app

    def lfin(self):
        i, app = self.est()
        since = len(self.session.frames)
        app.finish()
        self.wait(lambda: self.session.has_flag(i, FIN, since), 'no FIN of the peer')
        return i, app

    def rfin(self):
        i, app = self.est()
        self.session.frame(WINDOW, FIN, i)
        self.wait(app.is_over, 'the application reads no EOF', app)
        return i, app

    def done(self):
        i, app = self.lfin()
        self.session.frame(WINDOW, FIN, i)
        self.wait(app.is_over, 'the application reads no EOF', app)
        return i, None

    def rst(self):
        i, app = self.est()
        self.session.frame(WINDOW, RST, i, 2)
        self.wait(app.is_over, 'the application sees no reset', app)
        return i, None

    def prst(self):
        i, app = self.est()
        app.reset()
        self.wait(lambda: self.session.has_flag(i, RST), 'no RST', seconds=self.patience)
        return i, None

    def none(self):
        return 0, None

    def settle(self):
        """Two pings: when the second one is answered, all effects of the frames before are here."""
        s = self.session
        for _ in range(2):
            s.pings += 1
            value = 1000 + s.pings
            s.frame(PING, SYN, 0, value)
            self.wait(lambda: s.has_pong(value) or s.how_it_ended(), 'no pong')


class Backend(Peer):
    """The peer dials us and connects our streams to our target."""

    def __init__(self, args):
        super().__init__(args)
        self.server = listen() if args.command else server_at(args.listen)
        self.target = listen() if args.command else server_at(args.target)

    def start(self):
        self.next_id = 1
        for listener in (self.target, self.server)[:1 + bool(self.args.command)]:
            forget_clients(listener)  # of the program that was ended
        self.server.settimeout(PATIENCE)
        self.run([('{server}', address_of(self.server)), ('{target}', address_of(self.target))])
        sock = self.server.accept()[0]
        is_bare = self.args.bare
        self.session = Session(sock, *(() if is_bare else answer_upgrade(sock, self.args.carrier)))

    def new_id(self):
        i, self.next_id = self.next_id, self.next_id + 2
        return i

    def accept(self, i, since):
        """The connection of stream i, or None if it is refused or the peer does nothing."""
        self.target.settimeout(0)
        found = []

        def look():
            try:
                found.append(self.watch(self.target.accept()[0]))
                return True
            except BlockingIOError:
                return self.session.how_it_ended() or self.session.has_flag(i, RST, since)
        try:
            self.wait(look, '', seconds=self.patience)
        except Silent:
            pass
        return found[0] if found else None

    def open(self):
        i = self.new_id()
        self.session.frame(WINDOW, SYN, i)
        self.session.frame(DATA, 0, i, 0, b'tag')
        app = self.accept(i, 0)
        if not app:
            raise Silent('the peer does not connect to its target')
        return i, app

    def exchange(self, i, app):
        self.wait(lambda: app.bytes == b'tag', 'the first bytes do not arrive', app)
        app.send(b'back')
        self.wait(lambda: self.session.data_of(i) == b'back', 'no byte comes back', app)

    def never(self):
        return self.new_id() + 100, None

    def highest(self):
        return HIGHEST, None

    def lower(self):
        self.next_id = 11
        self.est()
        return 5, None

    def own(self):
        return 1000, None


class Proxy(Peer):
    """We dial the peer, and connect to where it takes clients."""

    def start(self):
        program = self.run()
        address = program.listens() if program else self.args.connect
        self.clients = program.listens() if program else self.args.clients
        sock = connect(address)
        self.session = Session(sock, *(() if self.args.bare else
                                       ask_upgrade(sock, address, self.args.carrier)))

    def open(self):
        since = len(self.session.frames)
        app = self.watch(connect(self.clients))
        app.send(b'tag')
        fresh = []

        def look():
            fresh[:] = [f[2] for f in self.session.frames[since:] if f[1] & SYN and f[0] != PING]
            return fresh and self.session.data_of(fresh[0]) == b'tag'
        self.wait(look, 'the peer opens no stream', app)
        return fresh[0], app

    def exchange(self, i, app):
        self.session.frame(WINDOW, ACK, i)
        self.session.frame(DATA, 0, i, 0, b'back')
        self.wait(lambda: app.bytes == b'back', 'no byte comes back', app)

    def accept(self, i, since):
        """Waits for what a proxy does with a stream of ours: at the most it refuses it."""
        is_over = lambda: self.session.how_it_ended() or self.session.has_flag(i, RST, since)
        try:
            self.wait(is_over, '', seconds=self.patience)
        except Silent:
            pass

    def syn(self):
        return self.open()

    def never(self):
        return 2, None

    def own(self):
        return 1001, None


def forget_clients(listener):
    listener.settimeout(0)
    try:
        while True:
            listener.accept()[0].close()
    except BlockingIOError:
        pass


def server_at(address):
    host, port = address.rsplit(':', 1)
    sock = socket.create_server((host, int(port)), backlog=512)
    sock.settimeout(60)
    return sock
