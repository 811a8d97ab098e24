#!/usr/bin/env python3
"""Mixed load for a long time: make soak [MINUTES=60]

Two proxies, one with TLS, and four agents (https, wss, http, ws) live from the start to the end.
Beside them a third proxy and its agents are killed, stopped, ended and started again, agents of the
lasting proxies come and go, and all lasting programs get HUP, with another configuration each time.
Clients hold streams for the whole time, open short ones, some of which they abort, and move bulk in
both directions; every byte is checked.

Prints each lasting program's memory, descriptors, threads, sessions and streams when it is idle at
first, each minute, and idle at the end. It fails if
    a stream of a lasting agent loses a byte or ends with an error
    a stream of any agent ends with EOF before its end
    a lasting program has more descriptors, threads, streams or memory of sessions at the end than
    when it was first idle, or its resident memory has grown since the first fifth of the time
    a program dies by itself or does not end well"""
import asyncio
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "hostile"))

import programs
from programs import KIB, MIB, Program

MINUTES = float(os.environ.get("MINUTES") or 60)
TOKEN = "soak-token-0123456789abcdef"
LIVENESS = ("--keepalive", "1s", "--dead-after", "3s")
GROWTH = 4 * MIB  # of resident memory: the allocator's, after the first fifth of the time
HELD, SHORT, BULK = 4, 6, 2  # tasks for each agent
SEED = int(os.environ.get("SOAK_SEED") or time.time())


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# ---- programs

class Cast:
    """All programs, and how to start each of them again."""

    def __init__(self, directory, target):
        self.directory, self.target = directory, target
        self.problems, self.starts, self.kills, self.reloads = [], 0, 0, 0
        self.certs = os.path.join(directory, "certs")
        os.mkdir(self.certs)
        subprocess.run(["sh", os.path.join(HERE, "..", "tls", "certs.sh"), self.certs], check=True,
                       stdout=subprocess.DEVNULL)
        self.secret("tokens", f"* {TOKEN}\n")
        self.secret("token", TOKEN)
        names = {"tls": ("https", "wss", "coming"), "plain": ("http", "ws"), "mortal": ("m1", "m2")}
        self.names, self.ports, self.extra, self.running = names, {}, {}, {}
        for proxy, agents in names.items():
            self.ports[proxy], self.extra[proxy] = free_port(), free_port()
            for agent in agents:
                self.ports[agent] = free_port()
        self.lasting = ["tls", "plain", "https", "wss", "http", "ws"]
        self.mortal = ["mortal", "m1", "m2", "coming"]

    def secret(self, name, text):
        path = os.path.join(self.directory, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)

    def configure(self, proxy, has_extra):
        """One port more or less, and another limit."""
        lines = [f"listen = 127.0.0.1:{self.ports[proxy]}",
                 f"token-file = {self.directory}/tokens", "admin = 127.0.0.1:0",
                 "dial-timeout = 5s", f"max-clients-per-source = {1000 + has_extra}"]
        if proxy == "tls":
            lines += [f"tls-cert = {self.certs}/server.pem", f"tls-key = {self.certs}/server.key"]
        ports = {agent: self.ports[agent] for agent in self.names[proxy]}
        if has_extra:
            ports[""] = self.extra[proxy]
        for agent, port in ports.items():
            lines += [f"[expose 127.0.0.1:{port}]", f"name = {agent or self.names[proxy][0]}",
                      f"target = {self.target}"]
        self.secret(f"{proxy}.conf", "\n".join(lines) + "\n")

    def start(self, name):
        self.starts += 1
        if name in self.names:
            self.configure(name, False)
            self.running[name] = Program(self.directory, name, "revdial-proxy", "--config",
                                         f"{self.directory}/{name}.conf", *LIVENESS)
            self.running[name].listens(1 + len(self.names[name]))
            return
        proxy = next(p for p, agents in self.names.items() if name in agents)
        scheme = name if name in self.lasting else "https" if proxy == "tls" else "ws"
        host = "localhost" if proxy == "tls" else "127.0.0.1"
        self.running[name] = Program(
            self.directory, name, "revdial-agent", "--server",
            f"{scheme}://{host}:{self.ports[proxy]}", "--name", name, "--token-file",
            f"{self.directory}/token", "--tls-ca", f"{self.certs}/ca.pem", "--allow", self.target,
            "--admin", "127.0.0.1:0", *LIVENESS)

    def start_all(self):
        for name in (*self.names, *(a for agents in self.names.values() for a in agents)):
            self.start(name)
        for agents in self.names.values():
            for agent in agents:
                self.running[agent].says("event=session.up")
        for name in self.lasting:
            self.running[name].address = self.running[name].admin()

    def reload(self):
        self.reloads += 1
        for name in self.lasting:
            if name in self.names:
                self.configure(name, bool(self.reloads % 2))
            self.running[name].process.send_signal(signal.SIGHUP)

    def check(self):
        for name in self.lasting:
            if not self.running[name].is_alive():
                self.problems.append(f"{name} has died: {self.running[name].log()[-300:]}")
                return False
        return True

    def end_all(self):
        for name, program in sorted(self.running.items(), key=lambda item: item[0] in self.names):
            if name != "coming" and (status := program.stop()) != 0:
                self.problems.append(f"{name} ended with {status}")


# ---- load

class Load:
    def __init__(self, cast):
        self.cast, self.is_over, self.is_paused = cast, False, False
        self.lost, self.false_ends, self.busy = [], [], 0
        kinds = ("held", "short", "aborted", "down", "up", "failed", "bytes")
        self.counts = dict.fromkeys(kinds, 0)

    def spawn(self):
        agents = [a for names in self.cast.names.values() for a in names]
        tasks = []
        for agent in agents:
            is_lasting = agent in self.cast.lasting
            kinds = [(self.short, SHORT), (self.bulk, BULK)]
            kinds += [(self.held, HELD)] if is_lasting else []
            tasks += [asyncio.create_task(self.run(kind, agent, is_lasting))
                      for kind, count in kinds for _ in range(count)]
        return tasks

    async def run(self, kind, agent, is_lasting):
        """Again and again. Only what is mortal may fail, and then with an error."""
        while not self.is_over:
            if self.is_paused:
                await asyncio.sleep(0.1)
                continue
            self.busy += 1
            try:
                await asyncio.wait_for(kind(agent), None if kind == self.held else 60)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as e:
                self.counts["failed"] += 1
                if is_lasting:
                    self.lost.append(f"{kind.__name__} {agent}: {e.__class__.__name__} {e}")
                await asyncio.sleep(0.2)
            finally:
                self.busy -= 1

    async def open(self, agent, command):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.cast.ports[agent])
        writer.write(command.encode() + b"\n")
        return reader, writer

    async def exchange(self, reader, writer, size):
        data = random.randbytes(size)
        writer.write(data)
        if await reader.readexactly(size) != data:
            raise ConnectionError("other bytes came back")
        self.counts["bytes"] += 2 * size

    async def held(self, agent):
        """One stream for the whole time."""
        reader, writer = await self.open(agent, "echo")
        try:
            while not self.is_over and not self.is_paused:
                await self.exchange(reader, writer, random.choice((1, 100, 5000, 60000)))
                self.counts["held"] += 1
                await asyncio.sleep(random.uniform(0.01, 0.1))
            writer.write_eof()
            if await reader.read() != b"":
                raise ConnectionError("bytes after the end")
        finally:
            writer.close()

    async def short(self, agent):
        reader, writer = await self.open(agent, "echo")
        try:
            await self.exchange(reader, writer, random.choice((1, 1000, 20000)))
            if random.random() < 0.2:
                writer.write(bytes(30000))
                writer.transport.abort()
                self.counts["aborted"] += 1
                return
            writer.write_eof()
            if await reader.read() != b"":
                raise ConnectionError("bytes after the end")
            self.counts["short"] += 1
        finally:
            writer.close()
        await asyncio.sleep(random.uniform(0, 0.05))

    async def bulk(self, agent):
        size = random.choice((10, 100_000, 1_000_000, 4_000_000))
        await (self.down if random.random() < 0.5 else self.up)(agent, size)
        self.counts["bytes"] += size
        await asyncio.sleep(random.uniform(0, 0.3))

    async def down(self, agent, size):
        seed = random.getrandbits(32)
        reader, writer = await self.open(agent, f"give {size} {seed}")
        try:
            data = bytearray()
            while more := await reader.read(1 << 16):
                data += more
                if random.random() < 0.02:
                    await asyncio.sleep(0.02)
            if len(data) < size:
                self.false_ends.append(f"{agent}: EOF after {len(data)} of {size} bytes")
            if data != random.Random(seed).randbytes(size)[:len(data)]:
                self.false_ends.append(f"{agent}: other bytes")
            self.counts["down"] += 1
        finally:
            writer.close()

    async def up(self, agent, size):
        data = random.randbytes(size)
        reader, writer = await self.open(agent, f"take {size}")
        try:
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            answer = await reader.read()
            if answer != hashlib.sha256(data).hexdigest().encode() + b"\n":
                self.false_ends.append(f"{agent}: {answer[:70]} for {size} bytes")
            self.counts["up"] += 1
        finally:
            writer.close()

    async def pause(self):
        """Until all streams have ended."""
        self.is_paused = True
        for _ in range(1200):
            if not self.busy:
                return
            await asyncio.sleep(0.1)
        self.lost.append(f"{self.busy} transfers do not end")


# ---- what happens to the others

async def disturb(cast, load):
    """Kills, stops, ends and starts what is mortal; reloads what lasts."""
    first = ["kill", "hup"]  # also of a short run
    while not load.is_over:
        await asyncio.sleep(random.uniform(0.5, 2.5))
        what = first.pop(0) if first else random.choice(("kill", "kill", "stop", "term", "hup"))
        name = random.choice(cast.mortal)
        program = cast.running[name]
        cast.kills += what != "hup"
        if what == "hup":
            cast.reload()
        elif what == "stop":
            program.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(random.uniform(0.2, 5))
            program.process.send_signal(signal.SIGCONT)
        else:
            program.process.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            await asyncio.to_thread(program.process.wait)
            await asyncio.sleep(random.uniform(0, 1))
            await asyncio.to_thread(cast.start, name)


# ---- figures

FIELDS = ("memory", "descriptors", "threads", "sessions", "streams", "session memory")


def figures(program):
    """Descriptors first: the request for the rest takes one."""
    descriptors, m = program.descriptors(), programs.metrics(program.address)
    return dict(zip(FIELDS, (program.memory(), descriptors, program.threads(),
                             int(m.get("revdial_sessions", 0)), int(m.get("revdial_streams", 0)),
                             int(m.get("revdial_memory_bytes", 0)))))


async def show(cast, load, when):
    """One line for each lasting program."""
    seen = {}
    for name in cast.lasting:
        seen[name] = f = await asyncio.to_thread(figures, cast.running[name])
        print(f"{when:>9} {name:6} {f['memory'] / MIB:7.1f} MiB  fds {f['descriptors']:4}  "
              f"threads {f['threads']:3}  sessions {f['sessions']:3}  streams {f['streams']:4}  "
              f"their memory {f['session memory'] / KIB:8.1f} KiB", flush=True)
    print(f"{when:>9} load   " + "  ".join(f"{k} {v}" for k, v in load.counts.items()) +
          f"  lost {len(load.lost)}  false ends {len(load.false_ends)}  kills {cast.kills}  "
          f"starts {cast.starts}  reloads {cast.reloads}", flush=True)
    return seen


async def idle(cast, load, when):
    """What the lasting programs have when all is over: streams may take a moment to go."""
    await load.pause()
    cast.running["coming"].kill()  # it has a session at a lasting proxy
    for _ in range(150):
        left = [figures(cast.running[n]) for n in cast.lasting]
        if not any(f["streams"] for f in left) and left[0]["sessions"] == 2:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    return await show(cast, load, when)


def compare(cast, first, early, last):
    for name in cast.lasting:
        a, z = first[name], last[name]
        for field in ("descriptors", "threads", "sessions", "streams"):
            if z[field] > a[field]:
                cast.problems.append(f"{name}: {field} {a[field]} at first, {z[field]} at the end")
        if z["session memory"] > a["session memory"] + 64 * KIB:
            cast.problems.append(f"{name}: memory of sessions {a['session memory']} at first, "
                                 f"{z['session memory']} at the end")
        if z["memory"] > early[name]["memory"] + GROWTH:
            cast.problems.append(f"{name}: {early[name]['memory'] / MIB:.1f} MiB after a fifth of "
                                 f"the time, {z['memory'] / MIB:.1f} MiB at the end")


async def soak(cast):
    load = Load(cast)
    tasks = load.spawn()
    await asyncio.sleep(5)  # each lasting program has done once what it does
    first = await idle(cast, load, "first")
    cast.start("coming")
    load.is_paused = False
    disturber = asyncio.create_task(disturb(cast, load))
    began, early, minute = time.monotonic(), None, 0
    while (now := time.monotonic() - began) < MINUTES * 60 and cast.check():
        if early is None and now > MINUTES * 12:
            early = await show(cast, load, "a fifth")
        if now >= (minute + 1) * 60:
            minute += 1
            await show(cast, load, f"{minute} min")
        await asyncio.sleep(0.5)
    disturber.cancel()
    await asyncio.gather(disturber, return_exceptions=True)
    for name in cast.mortal:
        cast.running[name].process.send_signal(signal.SIGCONT)
        if not cast.running[name].is_alive():
            cast.start(name)
    if not cast.check():
        return load
    for name in cast.lasting:
        if name in cast.names:
            cast.configure(name, False)
            cast.running[name].process.send_signal(signal.SIGHUP)
    last = await idle(cast, load, "end")
    load.is_over = True
    await asyncio.gather(*tasks)
    compare(cast, first, early, last)
    return load


def judge(cast, load, server):
    server.kill()
    problems = cast.problems + load.lost + load.false_ends + server.stdout.read().splitlines()
    for kind in ("held", "short", "aborted", "down", "up"):
        if not load.counts[kind]:
            problems.append(f"no transfer of the kind {kind}")
    if not cast.kills or not cast.reloads:
        problems.append("nothing was killed or reloaded")
    for problem in problems[:40]:
        print("FAIL", problem)
    print(f"{len(problems) == 0:d} passed, {len(problems)} failed")
    return len(problems) > 0


def main():
    programs.take_all_descriptors()
    random.seed(SEED)
    print(f"seed {SEED}, {MINUTES:g} minutes")
    directory = tempfile.mkdtemp(prefix="revdial-soak-")
    server = subprocess.Popen([sys.executable, os.path.join(HERE, "server.py")],
                              stdout=subprocess.PIPE, text=True)
    cast = Cast(directory, f"127.0.0.1:{server.stdout.readline().strip()}")
    try:
        cast.start_all()
        load = asyncio.run(soak(cast))
        cast.end_all()
        return judge(cast, load, server)
    finally:
        server.kill()
        for program in cast.running.values():
            if program.is_alive():
                program.kill()
        if os.environ.get("SOAK_KEEP"):
            print("kept:", directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
