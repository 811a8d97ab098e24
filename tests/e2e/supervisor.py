# What systemd does for a service: hears what it says, and holds its sockets.
#     supervisor.py listen PATH|@NAME              prints each datagram as a line
#     supervisor.py sockets NAME,... COMMAND...    USR1 replaces the process by a new one
import os, select, signal, socket, sys


def say(*words):
    print(*words, flush=True)


def hear(at):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if at[0] != "@" and os.path.exists(at):
        os.unlink(at)
    sock.bind("\0" + at[1:] if at[0] == "@" else at)
    return sock


def listen(at):
    sock = hear(at)
    say("listening")
    while True:
        say(sock.recv(4096).decode().replace("\n", " "))


def launch(command, names, socks, notify):
    """A process with the sockets as descriptors 3, 4, ..., ready when it says so."""

    def pass_sockets():
        for i, sock in enumerate(socks):
            os.dup2(sock.fileno(), 100 + i)
        for i in range(len(socks)):
            os.dup2(100 + i, 3 + i)
            os.close(100 + i)
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.execvp(command[0], command)

    sys.stdout.flush()
    os.environ.update(LISTEN_FDS=str(len(socks)), LISTEN_FDNAMES=":".join(names))
    os.environ["NOTIFY_SOCKET"] = "@" + notify.getsockname()[1:].decode()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        pass_sockets()
    while notify.recv(4096) != b"READY=1":
        pass
    say("new ready")
    return pid


def sockets(names, *command):
    names = names.split(",")
    socks = [socket.create_server(("127.0.0.1", 0), backlog=4096) for _ in names]
    notify = hear(f"@revdial-supervisor-{os.getpid()}")
    say("sockets", *("%s:%d" % s.getsockname() for s in socks))
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    asked, pid = [], launch(command, names, socks, notify)
    while read_on(asked):
        asked.clear()
        old, pid = pid, launch(command, names, socks, notify)
        os.kill(old, signal.SIGTERM)
        say("old ended", os.waitstatus_to_exitcode(os.waitpid(old, 0)[1]))
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)


def read_on(asked):
    """Until USR1 comes; not if stdin ends."""
    while not asked:
        if select.select([sys.stdin], [], [], 0.05)[0]:
            return False
    return True


{"listen": listen, "sockets": sockets}[sys.argv[1]](*sys.argv[2:])
