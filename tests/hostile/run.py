#!/usr/bin/env python3
"""Hostile peers of the real programs: make hostile [HOSTILE="pings rapid"] [HOSTILE_SECONDS=60]

Each attack of attacks.py runs for so many seconds, half of them at the limit that is meant for it
and half past it, against a proxy or an agent that serves an honest session meanwhile. One line for
each says what it cost the victim: processor time, memory beside the formula of its limits,
descriptors and lines of the log. It fails when
    memory grows by more than the formula says
    descriptors are not back where they were soon after the attackers have left
    the log has more lines than its limits allow
    the honest session or its newcomers lose a byte, or another agent cannot register meanwhile
    a peer within its limit is ended, or one past it is not, where the attack says so
    the victim dies, or does not end well
An attacker takes processor time from the others here, which one on another machine would not. So
it has one core for itself and its targets, and after each phase a process that does nothing takes
as much of this core. The latency of the honest session beside the attack is compared with that
beside the harmless process: what is more is our fault. From HOSTILE_SECONDS=30 on, one by one, it
fails also when
    the latency is more than TWICE, beyond what chance explains (CHANCE)

HOSTILE chooses attacks by words in their lines. With HOSTILE_JOBS=4 so many run side by side, which
is quicker and says nothing about latency. All happens in a network namespace of its own."""
import collections
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True

import attacks
import programs
import wire
from programs import MIB, Program, until

HERE = os.path.dirname(os.path.abspath(__file__))
SECONDS = float(os.environ.get("HOSTILE_SECONDS") or 60)
JOBS = int(os.environ.get("HOSTILE_JOBS") or 1)
PATIENT = ("--keepalive", "10m", "--dead-after", "10m")  # the attackers answer no pings
ADDRESS = "192.0.2.1"  # where targets and names are: a rule with a name leads to no loopback
TOKENS = {"honest": "honest-token-0123456789", "evil*": "evil-token-0123456789abc",
          "guest": "guest-token-0123456789ab"}
GUEST_SECONDS = 15  # in which another agent must get in
CALM_SECONDS = max(0.3, min(SECONDS / 6, 3))  # of what an attack is compared with
CORE = {max(os.sched_getaffinity(0))}  # where attackers are
TWICE = 2.0
CHANCE = {"p50": 0.1, "p99": 3.0}  # ms, of two measurements without an attack: a slice of the
# scheduler is 3 ms, and one of a hundred round trips may wait for somebody else's


# ---- a place of our own

def enter_namespace():
    """Its own loopback, addresses and name server."""
    if os.environ.get("HOSTILE_INSIDE"):
        return
    os.environ["HOSTILE_INSIDE"] = "1"
    user = [] if os.getuid() == 0 else ["-r"]
    os.execvp("unshare", ["unshare", *user, "-n", "-m", sys.executable, __file__, *sys.argv[1:]])


class AttackersCore:
    """While it is entered, this thread runs there."""

    def __enter__(self):
        self.before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, CORE)

    def __exit__(self, *_):
        os.sched_setaffinity(0, self.before)


def be_busy(share, seconds):
    """Takes this share of a core and harms nobody."""
    began, cpu = time.monotonic(), time.thread_time()
    while (now := time.monotonic() - began) < seconds:
        if time.thread_time() - cpu < share * now:
            sum(range(2000))
        else:
            time.sleep(0.001)


def furnish(directory):
    for command in ("link set lo up", f"addr add {ADDRESS}/32 dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    path = os.path.join(directory, "resolv.conf")
    with open(path, "w") as f:
        f.write(f"nameserver {ADDRESS}\n")
    subprocess.run(["mount", "--bind", path, "/etc/resolv.conf"], check=True)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((ADDRESS, 53))
    threading.Thread(target=answer_names, args=(sock,), daemon=True).start()


def answer_names(sock):
    """RFC 1035, section 4: good.test is here, IPv4 only; what is asked of dead.test is dropped."""
    while True:
        question, client = sock.recvfrom(512)
        if b"\4dead\4test" in question:
            continue
        end = question.index(b"\0", 12) + 5
        is_a = question[end - 4:end - 2] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(ADDRESS) if is_a else b""
        sock.sendto(question[:2] + b"\x81\x80\0\1\0" + bytes([is_a]) + bytes(4) +
                    question[12:end] + answer, client)


# ---- what is attacked, and who is beside it

class Helper:
    """A process of ours, which says its ports first."""

    def __init__(self, script, *arguments):
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, script), *arguments],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self):
        return self.process.stdout.readline()

    def tell(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def stop(self):
        self.process.kill()
        self.process.wait()


class Scene:
    """A proxy, an agent with an honest session, and what the attacks need."""

    most_names = attacks.SESSIONS
    token = TOKENS["evil*"]

    def __init__(self, directory, attack, targets):
        self.attack, self.is_proxy = attack, attack.victim == "proxy"
        self.directory, self.leaving = directory, []
        self.sent = self.sessions = self.ended = self.held = 0
        self.first_stream = 2 if self.is_proxy else 1
        self.silent, self.source, self.full = (targets[k] for k in ("silent", "source", "full"))
        self.targets = targets["pid"]
        self.target = self.silent
        self.listener = None
        self.honest = Helper("honest.py", ADDRESS)
        self.echo = f"echo.good.test:{self.honest.line().strip()}"
        self.proxy = self.agent = None

    def start(self, attack):
        tokens = os.path.join(self.directory, "tokens")
        with open(os.open(tokens, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.writelines(f"{names} {token}\n" for names, token in TOKENS.items())
        exposes = {"honest": f"honest/{self.echo}", "evil": "evil",
                   "silent": f"honest/{self.silent}"}
        fronts = ("--connect", "--socks5", "--sni", "--http")
        options = [w for x in exposes.values() for w in ("--expose", f"127.0.0.1:0={x}")]
        options += [w for front in fronts for w in (front, "127.0.0.1:0")]
        self.proxy = Program(self.directory, "proxy", "revdial-proxy", "--listen", "127.0.0.1:0",
                             "--token-file", tokens, "--admin", "127.0.0.1:0", "--route",
                             "*=honest", "--max-per-identity", str(self.most_names), *PATIENT,
                             *options, *attack.options)
        heard = self.proxy.listens(1 + len(exposes) + len(fronts))
        self.ports = dict(zip(("agents", *exposes, *fronts), heard))
        self.ports["--admin"] = self.proxy.admin()
        self.start_agent()

    def start_agent(self):
        token = os.path.join(self.directory, "token")
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(TOKENS["honest"])
        options = ["--server", f"http://{self.ports['agents']}"]
        if not self.is_proxy:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.listener.settimeout(0.1)
            options += ["--server", f"http://127.0.0.1:{self.listener.getsockname()[1]}",
                        "--forward", f"127.0.0.1:0={self.silent}"]
        self.agent = Program(self.directory, "agent", "revdial-agent", "--name", "honest",
                             "--token-file", token, "--allow", f"{ADDRESS}:*", "--allow",
                             "*.test:*", *PATIENT, *options)
        self.agent.says("event=session.up")
        if not self.is_proxy:
            self.ports["--forward"] = self.agent.listens(1)[0]
        self.victim = self.proxy if self.is_proxy else self.agent
        self.honest.tell(f"start {self.ports['honest']}")

    def figures(self):
        self.honest.tell("figures")
        return json.loads(self.honest.line())

    def stop(self):
        """What did not end well."""
        problems = []
        self.honest.stop()  # or its stream would be waited for
        for program in filter(None, (self.agent, self.proxy)):
            status = program.stop()
            if status != 0:
                problems.append(f"the {program.name} ended with {status}")
        return problems

    # ---- for the attacks

    def begin(self, seconds, must_end):
        self.sent = self.sessions = self.ended = self.held = 0
        self.must_end, self.guest_ms = must_end, None
        self.over = time.monotonic() + seconds
        self.at_last = self.over + 30
        if self.is_proxy:
            threading.Thread(target=self.let_guest_in, args=(seconds / 4,), daemon=True).start()

    def is_over(self):
        """An attack goes on until what it must reach has happened."""
        now = time.monotonic()
        lacks = self.must_end and not self.ended or self.is_proxy and self.guest_ms is None
        return now > (self.at_last if lacks else self.over)

    def sleep(self, seconds, sock=None):
        """Reads meanwhile from sock, so that the victim's writes are not blocked."""
        end = min(time.monotonic() + seconds, self.at_last)
        while (left := end - time.monotonic()) > 0 and not self.is_over():
            if not sock:
                time.sleep(min(left, 0.05))
            elif wire.has_more(sock, min(left, 0.05)) and not sock.recv(1 << 16):
                raise ConnectionError("the end")

    def wait(self, sock):
        while not self.is_over():
            self.sleep(1, sock)

    def let_go(self, most):
        """Closes all but the newest of the sockets that are leaving."""
        while len(self.leaving) > most:
            self.leaving.pop(0).close()

    def session(self, buffers=0):
        if self.is_proxy:
            return wire.register(self.ports["agents"], "evil", self.token, buffers=buffers)
        while not self.is_over():
            try:
                sock = wire.accept(self.listener)
            except TimeoutError:
                continue
            if buffers:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            return sock
        raise ConnectionError("the agent did not come back")

    def session_with_stream(self, is_sending=False):
        """A session and the number of a stream in it, at whose other end somebody may send."""
        sock = self.session()
        if not self.is_proxy:
            target = self.source if is_sending else self.silent
            sock.sendall(wire.opening(1, target))
            return sock, 1
        client = wire.connect(self.ports["evil"])
        self.leaving.append(client)
        while True:
            kind, flags, stream, _, _ = wire.read_frame(sock)
            if kind != wire.PING and flags & wire.SYN:
                break
        sock.sendall(wire.frame(wire.WINDOW, wire.ACK, stream, 0))
        client.setblocking(False)
        try:
            while is_sending:
                client.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        return sock, stream

    def let_guest_in(self, after):
        """Another agent, which comes back as agents do when it is refused."""
        time.sleep(after)
        began = time.monotonic()
        while time.monotonic() - began < GUEST_SECONDS:
            try:
                sock = wire.register(self.ports["agents"], "guest", TOKENS["guest"],
                                     source="127.0.0.1", timeout=GUEST_SECONDS)
                self.guest_ms = (time.monotonic() - began) * 1000
                sock.close()
                return
            except OSError:
                time.sleep(0.1)


# ---- the log

def log_limits():
    """Of each event: lines at once, and per minute after that."""
    with open(os.path.join(HERE, "..", "..", "revdial.h")) as f:
        rows = re.findall(r'X\([A-Z_]+, "([a-z_.]+)", (\d+), (\d+)\)', f.read())
    return {event: (int(burst), int(rate)) for event, burst, rate in rows}


LIMITS = log_limits()


def log_problems(lines, seconds):
    """What each event had too much of; "suppressed" is said once a second for each event."""
    counts = collections.Counter(re.findall(r"\bevent=(\S+)", lines))
    problems = []
    for event, count in counts.items():
        burst, rate = LIMITS.get(event, (20, 60 * len(LIMITS)))
        if count > burst + rate * (seconds + 1) / 60 + 1:
            problems.append(f"{count} lines of {event}")
    return problems


# ---- one attack

class Phase:
    """What the victim and the honest session did during one half of an attack."""

    def __init__(self, scene, attack, is_past, seconds):
        victim = scene.victim
        cpu, began = victim.cpu(), time.monotonic()
        scene.begin(seconds, is_past and attack.is_ended)
        with AttackersCore():
            attackers = time.thread_time() + programs.cpu_of(scene.targets)
            attack.run(scene, is_past)
            attackers = time.thread_time() + programs.cpu_of(scene.targets) - attackers
        self.seconds = time.monotonic() - began
        self.cpu = (victim.cpu() - cpu) / self.seconds
        self.honest = scene.figures()
        self.share = min(attackers / self.seconds, 1)
        self.sent, self.sessions, self.ended = scene.sent, scene.sessions, scene.ended
        self.guest_ms = scene.guest_ms
        scene.let_go(0)

    def compare(self, scene, seconds):
        """With what a harmless process does to the honest session."""
        scene.figures()
        with AttackersCore():
            be_busy(self.share, seconds)
        self.beside = scene.figures()
        # What takes an odd one of a hundred round trips long, on a machine that has others to
        # serve, comes at times: the longest measurement counts, whoever was quiet in it.
        scene.calm_p99 = max(scene.calm_p99, self.beside["p99"])
        self.calm = {"p50": self.beside["p50"], "p99": scene.calm_p99}

    def ratio(self, key):
        return (self.honest[key] or 0) / self.calm[key]

    def is_within_twice(self, key):
        return (self.honest[key] or 0) <= TWICE * self.calm[key] + CHANCE[key]


def latency(seen):
    return f"{seen['p50'] or 0:.2f}/{seen['p99'] or 0:.1f}"


class Attempt:
    def __init__(self, attack, directory, targets):
        self.attack, self.problems, self.is_slow = attack, [], False
        scene = Scene(directory, attack, targets)
        try:
            scene.start(attack)
            self.play(scene)
        except Exception as e:  # one line says it, and the others go on
            self.problems.append(f"{e.__class__.__name__}: {e}")
            self.line = f"{attack.number} {attack.what}"
        finally:
            scene.let_go(0)
            self.problems += scene.stop()

    def play(self, scene):
        attack, victim = self.attack, scene.victim
        self.settle(scene)
        time.sleep(CALM_SECONDS)
        self.quiet = scene.figures()
        scene.calm_p99 = self.quiet["p99"]
        before, descriptors, lines = victim.memory(), victim.descriptors(), len(victim.log())
        victim.forget_peak()
        self.phases, backs, began = [], [], time.monotonic()
        for is_past in (False, True):
            self.phases.append(Phase(scene, attack, is_past, SECONDS / 2))
            backs.append(until(attack.gone, lambda: victim.descriptors() <= descriptors))
            self.phases[-1].compare(scene, CALM_SECONDS)
        log = victim.log()[lines:]
        self.judge(scene, backs, descriptors, log, time.monotonic() - began)
        grown = max(0, victim.peak() - before)
        if grown > attack.memory:
            self.problems.append(f"memory grew by {grown / MIB:.1f} MiB")
        self.show(grown, backs, log.count("event="))

    def settle(self, scene):
        """All that the honest session needs is there."""
        if until(20, lambda: scene.figures()["opens"]) is None:
            raise RuntimeError("no honest session")

    def judge(self, scene, backs, descriptors, log, seconds):
        attack, (limit, past) = self.attack, self.phases
        if None in backs:
            self.problems.append(f"{scene.victim.descriptors()} descriptors stay of {descriptors}")
        self.problems += log_problems(log, seconds)
        for phase in self.phases:
            lost, opens = phase.honest["lost"], phase.honest["opens"]
            if lost or not phase.honest["trips"]:
                self.problems.append(f"the honest session lost {len(lost)}: {lost[:2]}")
            if scene.is_proxy and phase.guest_ms is None:
                self.problems.append("another agent could not register")
        self.is_slow = not self.is_within_twice()
        if JOBS == 1 and SECONDS >= 30 and self.is_slow:
            self.problems.append("the latency of the honest session is more than doubled")
        if attack.is_survived and limit.ended:
            self.problems.append(f"{limit.ended} sessions within the limit were ended")
        if attack.is_ended and not past.ended:
            self.problems.append("no session past the limit was ended")

    def show(self, grown, backs, lines):
        a, (limit, past) = self.attack, self.phases
        back = "/".join("never" if b is None else f"{b:.1f}" for b in backs)
        guest = max((p.guest_ms or 0 for p in self.phases), default=0)
        times = " ".join(f"{latency(p.beside):>10} {latency(p.honest):>10}" for p in self.phases)
        ratios = " ".join(f"{p.ratio(k):5.1f}{' ' if p.is_within_twice(k) else '!'}"
                          for p in self.phases for k in CHANCE)
        self.line = (
            f"{a.number:14} {a.victim:5} {a.what:42} {limit.sent:>8}/{past.sent:<9} "
            f"{limit.ended:>5}/{past.ended:<6} {limit.cpu:4.0%}/{past.cpu:4.0%} "
            f"{grown / MIB:5.1f}/{a.memory / MIB:<5.0f} {back:>8} {lines:4}  "
            f"{limit.share:4.0%}/{past.share:4.0%} {latency(self.quiet):>10} {times} {ratios} "
            f"{guest:6.0f} {sum(len(p.honest['lost']) for p in self.phases):3}")

    def is_within_twice(self):
        return all(p.is_within_twice(k) for p in self.phases for k in CHANCE)


HEAD = (f"{'number':14} {'whom':5} {'attack':42} {'sent, limit/past':>18} {'ended':>12} "
        f"{'CPU':>9} {'MiB of':>11} {'fds, s':>8} {'log':>4}  {'attackers':>9} {'quiet ms':>10} "
        f"{'busy':>10} {'at limit':>10} {'busy':>10} {'past it':>10} "
        f"{'x busy: p50, p99 twice':>26} {'guest':>6} lost")


def chosen():
    words = os.environ.get("HOSTILE", "").split()
    share = int(os.environ.get("HOSTILE_SHARE") or 0)
    all_of_them = [(f"{a.number} {a.victim} {a.what}", a) for a in attacks.ATTACKS]
    some = [x for x in all_of_them if not words or any(word in x[0] for word in words)]
    return some[share::JOBS]


def run_shares():
    """Each job is a process with a share of the attacks."""
    jobs = [subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "HOSTILE_SHARE": str(i)}) for i in range(JOBS)]
    sums = [0, 0]

    def follow(job):
        for line in job.stdout:
            if found := re.fullmatch(r"(\d+) passed, (\d+) failed\n", line):
                sums[0] += int(found[1])
                sums[1] += int(found[2])
            elif line != HEAD + "\n":
                print(line, end="", flush=True)

    print(HEAD, flush=True)
    threads = [threading.Thread(target=follow, args=(job,)) for job in jobs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    died = sum(job.wait() not in (0, 1) for job in jobs)
    print(f"{sums[0]} passed, {sums[1] + died} failed")
    return sums[1] + died > 0 or not sums[0]


def main():
    if JOBS > 1 and "HOSTILE_SHARE" not in os.environ:
        return run_shares()
    enter_namespace()
    programs.take_all_descriptors()
    directory = tempfile.mkdtemp(prefix="revdial-hostile-")
    targets = None
    passed = failed = slow = 0
    try:
        furnish(directory)
        targets = Helper("targets.py", ADDRESS)
        where = dict(targets.line().split() for _ in range(3))
        where = {name: f"{ADDRESS}:{port}" for name, port in where.items()}
        where["pid"] = targets.process.pid
        os.sched_setaffinity(targets.process.pid, CORE)
        print(HEAD, flush=True)
        for number, (name, attack) in enumerate(chosen()):
            place = os.path.join(directory, str(number))
            os.mkdir(place)
            attempt = Attempt(attack, place, where)
            print(attempt.line, flush=True)
            for problem in attempt.problems:
                print(f"FAIL {name}: {problem}", flush=True)
            failed += bool(attempt.problems)
            passed += not attempt.problems
            slow += attempt.is_slow
    finally:
        if targets:
            targets.stop()
        if os.environ.get("HOSTILE_KEEP"):
            print("kept:", directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if JOBS == 1:
        print(f"the latency of the honest session was more than twice that beside a harmless "
              f"process at {slow} attacks")
    print(f"{passed} passed, {failed} failed")
    return failed > 0 or not passed


if __name__ == "__main__":
    sys.exit(main())
