#!/usr/bin/env python3
"""The benchmark: `make bench`, or make bench BENCH="relay link lib tls" for some of its parts.

    relay    a load generator over plain TCP, through each tunnel and without one
    link     the tunnels over a long thin link and over long fat ones
    lib      the library alone: two processes, one connection, beside bare sockets and Go's yamux
    engine   the protocol without sockets: instructions of a frame, frames per second
    calls    system calls of both sides for one message, by perf; only when asked for
    http     requests of HTTP/1.1 by their Host, beside HAProxy and nginx
    tls      relay, with TLS in the tunnels; and bulk through TLS beside mbedTLS alone

In each round every peer does a job once, in an order that changes; what is printed are medians
over the rounds, and medians of the rounds' ratios. Results are also written to build/bench:
results.md, results.json and *.svg.

Environment:
    BENCH_ROUNDS    rounds (5)
    BENCH_SECONDS   of one measurement (0.5)
    BENCH_PEERS     peers by name, instead of all that are there: "direct revdial haproxy"
    BENCH_JOBS      jobs by name, instead of all: "up1 ping500" of relay, "bulk1" of lib, ...
    BENCH_OLD       another build's directory: it takes part as revdial-old, and in lib as old-*
    BENCH_WITH      options for both programs: they take part as revdial-with, too
    BENCH_CPUS      processors to use, instead of all: "0"
    BENCH_SMOKE     1: shows that everything runs, says nothing about speed (one short round)
"""
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # nothing is written beside the sources

import peers
import report

BUILD = os.environ.get("REVDIAL_BUILD", "build")
OUT = os.path.join(BUILD, "bench")
JOBS = os.environ.get("BENCH_JOBS", "").split()
OLD = os.environ.get("BENCH_OLD", "")
ONLY = os.environ.get("BENCH_PEERS", "").split()
CPUS = {int(n) for n in os.environ.get("BENCH_CPUS", "").split()}
SMOKE = os.environ.get("BENCH_SMOKE", "") not in ("", "0")
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or (1 if SMOKE else 5))
SECONDS = float(os.environ.get("BENCH_SECONDS") or (0.15 if SMOKE else 0.5))
IDLE = 200 if SMOKE else 2000
CROWD = 1000 if SMOKE else 10000
# A request takes two descriptors of HAProxy and nginx, which slow down well before they have none.
MANY = min(CROWD, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 400) // 4)

# name, what, the load generator's arguments, figures that it is about
RELAY = [
    ("up1", "bulk up, 1 connection", "up -c 1", ["MBps"]),
    ("down1", "bulk down, 1 connection", "down -c 1", ["MBps"]),
    ("up16", "bulk up, 16 connections", "up -c 16", ["MBps", "fair"]),
    ("down16", "bulk down, 16 connections", "down -c 16", ["MBps", "fair"]),
    ("ping1", "ping-pong, 1 connection", "ping -c 1", ["p50_us", "p99_us"]),
    ("ping500", "ping-pong, 500 connections", "ping -c 500", ["per_s", "p99_us"]),
    ("touch1", "connect + echo + close", "touch -c 1", ["per_s"]),
    ("touch32", "the same, 32 in flight", "touch -c 32", ["per_s"]),
    ("mixed", "4 bulk + 1 ping", "mixed -c 4", ["MBps", "p99_us", "p50_us"]),
]
HTTP = "http-"  # how the names of jobs begin that are about requests
REQUESTS = [
    ("request1", "requests, 1 connection", "request -c 1", ["per_s", "p99_us"]),
    ("request100", "requests, 100 connections", "request -c 100", ["per_s", "p99_us"]),
    ("requests", f"requests, {MANY} connections", f"request -c {MANY}", ["per_s", "p99_us"]),
]
TLS = "tls-"  # how the names of the same jobs begin where the tunnels encrypt
# The 99th percentile of few pings would be their worst; a thousand threads take time to start.
LONGER = {"mixed": 3, "ping1000": 2, "requests": 4}
WARM = {"tls-ping500": 3}  # seconds; two HAProxies have 500 handshakes to do first
CROWD_PEERS = ("direct", "revdial", "revdial-with", "revdial-old",
               "haproxy")
DEEP_PEERS = ("revdial", "revdial-ws", "revdial-mbedtls", "revdial-openssl", "revdial-with",
              "revdial-old", "yamux", "ssh")
RTTS_MS = (10,) if SMOKE else (10, 40, 100)
THIN = {"one_way_ms": 20, "mbit": 10, "queue_kib": 32}
# Real TCP through a router with a deep queue: Mbit/s, round trip in ms, queue in kB, bulk streams.
DEEP = [(10, 40, 1250, n) for n in (1, 2, 4, 8, 16)]
DEEP += [(100, 40, 12500, 4), (50, 100, 6000, 16), (2, 80, 500, 2)]
if SMOKE:
    DEEP = [(10, 40, 1250, 8)]
DEEP_SECONDS, DEEP_WARM = (1, 0.5) if SMOKE else (8, 1)

LIB = ["bulk1", "bulk16", "ping1", "ping1000", "open1", "open64", "idle10", "idle100", "idle1000",
       "idle10000", "asleep", "others1000", "asleep1000"]
if SMOKE:  # it takes long to open them
    LIB = [name for name in LIB if not re.search("idle1..|1000$", name) or name == "ping1000"]
YAMUX_LIB = ("bulk1", "bulk16", "ping1", "ping1000", "open1", "open64")
ENGINE = ["in64", "in64-1000", "in64-idle", "in64-peek", "out64", "out64-1000", "out64-idle",
          "in16k", "in16k-peek", "out16k", "out16k-place"]
if SMOKE:
    ENGINE = ["in64", "out64", "in16k"]

if JOBS:
    RELAY = [job for job in RELAY if job[0] in JOBS]
    REQUESTS = [job for job in REQUESTS if job[0] in JOBS]
    LIB = [name for name in LIB if name in JOBS]
    ENGINE = [name for name in ENGINE if name in JOBS]


def work_figure(job):
    """The figure that cannot be 0 when a job ran; None if there is no such figure."""
    if "asleep" in job or job in ("idle", "http-kept", "engine-memory") or job.startswith("calls-"):
        return None
    return "per_s" if job.startswith("engine-") else "all"


class Results:
    """Figures of every round: [job][peer] is a list of dictionaries, one for each round."""

    def __init__(self):
        self.of = {}

    def add(self, job, peer, figures):
        self.of.setdefault(job, {}).setdefault(peer, []).append(figures)

    def values(self, job, peer, key):
        return [f.get(key) for f in self.of.get(job, {}).get(peer, [])]

    def median(self, job, peer, key):
        values = [v for v in self.values(job, peer, key) if v is not None]
        return statistics.median(values) if values else None

    def ratio(self, job, peer, other, key, other_job=None):
        """Median of the rounds' ratios, None if one of the two is not there."""
        pairs = zip(self.values(job, peer, key), self.values(other_job or job, other, key))
        ratios = [a / b for a, b in pairs if a is not None and b]
        return statistics.median(ratios) if ratios else None


    def faults(self):
        """What did not run, and what ran and did nothing."""
        found = []
        for job, of in self.of.items():
            for peer, rounds in of.items():
                if not all(rounds):
                    found.append(f"{job}: {peer} failed")
                elif work_figure(job) and any(not f.get(work_figure(job)) for f in rounds):
                    found.append(f"{job}: {peer} did nothing")
        return found if self.of else ["nothing was measured"]


def parse(line):
    """'name key=value ...' as a dictionary of floats."""
    return {k: float(v) for k, v in re.findall(r"(\w+)=(-?[\d.]+)(?: |$)", line)}


def lines_of(command, seconds=60, **more):
    """What a program prints, as lines; none if it fails, which is said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **more)
        if done.returncode == 0:
            return done.stdout.strip().splitlines()
        why = done.stderr.strip() or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"stopped after {seconds:.0f} s"
    print(f"  {' '.join(command)}: {why}")
    return []


def measured(command, seconds=60):
    """The figures in the last line that a program prints; {} if there is none."""
    lines = lines_of(command, seconds)
    return parse(lines[-1]) if lines else {}


def is_job(name):
    return not JOBS or name in JOBS


def in_turn(items, round_number):
    """The same items, another one first in each round."""
    at = round_number % max(len(items), 1)
    return items[at:] + items[:at]


def load(port, arguments, seconds=SECONDS, warm=None):
    command = [f"{OUT}/load", *arguments.split(), str(port), "-t", str(seconds)]
    if warm is not None:
        command += ["-w", str(warm)]
    figures = measured(command, 60 + 2 * seconds)
    time.sleep(0.05)  # what the tunnel still has to clear away is not the next one's cost
    return figures


def start_server(run):
    return run.port_of(run.start("server", [f"{OUT}/load", "serve"]))


def wanted_peers():
    """Those that can be had; an instance serves one tunnel, so this makes new ones."""
    known = [kind(BUILD) for kind in peers.ALL if not ONLY or kind.name in ONLY]
    return [peer for peer in known if peer.is_wanted and not peer.missing]


def jobs_of(prefix):
    return REQUESTS if prefix == HTTP else RELAY


def does_any(peer, prefix=""):
    return any(peer.does(prefix + job[0]) for job in jobs_of(prefix))


def say_who_is_missing(notes, prefix=""):
    for kind in peers.ALL:
        peer = kind(BUILD)
        if peer.missing and (not ONLY or peer.name in ONLY) and does_any(peer, prefix):
            leave_out(notes, peer.name, peer.missing)


def leave_out(notes, name, why):
    """A peer that was asked for by name should have been there."""
    print(f"  {name}: {why}; left out")
    if name in ONLY:
        notes.setdefault("faults", []).append(f"{name} was asked for and is not there")


def bring_up(run, notes, target, line=lambda port: port, choose=lambda peer: True):
    """Those that are up; why the others are not is said. Without a target each gets its own."""
    up = []
    for peer in filter(choose, wanted_peers()):
        try:
            peer.up(run, target or start_server(run), line)
            up.append(peer)
        except (RuntimeError, OSError, subprocess.SubprocessError) as e:
            leave_out(notes, peer.name, e)
    return up


# ---- relay ----

def family(pid):
    """A process and its children, and theirs."""
    found = [pid]
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        for child in f.read().split():
            found += family(int(child))
    return found


def anonymous_bytes(process):
    """Memory of its own that a process and its children hold."""
    total = 0
    for pid in family(process.pid):
        with open(f"/proc/{pid}/status") as f:
            total += 1024 * int(re.search(r"RssAnon:\s*(\d+)", f.read()).group(1))
    return total


def cost_so_far(peer):
    """Processor seconds and switches of context of both sides of a tunnel, in all their life."""
    seconds = switches = 0
    for pid in [p for side in peer.sides for p in family(side.pid)]:
        seconds += time.clock_gettime((~pid << 3) | 2)  # the kernel's name for its processor time
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status") as f:
                switches += sum(int(n) for n in re.findall(r"voluntary_ctxt_switches:\s*(\d+)",
                                                           f.read()))
    return seconds, switches


def load_and_cost(peer, arguments, seconds, warm=None):
    """Adds what both sides of the tunnel spent on one message, or on one megabyte."""
    before = cost_so_far(peer)
    figures = load(peer.port, arguments, seconds, warm)
    after = cost_so_far(peer)
    if peer.sides and figures.get("all"):
        figures["cpu_us"] = 1e6 * (after[0] - before[0]) / figures["all"]
        figures["switches"] = (after[1] - before[1]) / figures["all"]
    return figures


def wait_for_no_connections(peer, least=64):
    """Until no process of the tunnel holds more descriptors than it needs by itself."""
    pids = [p for side in peer.sides for p in family(side.pid)]
    until = time.monotonic() + 20
    while any(len(os.listdir(f"/proc/{pid}/fd")) > least for pid in pids):
        if time.monotonic() > until:
            raise RuntimeError(f"{peer.name}: connections that have ended are still open")
        time.sleep(0.02)


def idle_memory(peer, job="idle"):
    """Bytes that each side of a fresh tunnel needs for one more idle connection."""
    run = peers.Processes(os.path.join(OUT, "run", f"idle-{peer.name}"))
    try:
        peer.up(run, start_server(run))
        before = [anonymous_bytes(side) for side in peer.sides]
        holder = subprocess.Popen([f"{OUT}/load", job, str(peer.port), "-c", str(IDLE)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = holder.stdout.readline()
        time.sleep(0.3)
        after = [anonymous_bytes(side) for side in peer.sides]
        holder.communicate()
        if not ready.startswith("ready"):
            return {}
        grown = [(a - b) / IDLE for a, b in zip(after, before)]
        return {"proxy_bytes": grown[0], "agent_bytes": grown[1]}
    except (RuntimeError, OSError) as e:
        print(f"  {peer.name}: {e}")
        return {}
    finally:
        run.end()


def crowd_rounds(results, up):
    """500 active connections, by themselves and among idle ones."""
    began = time.monotonic()
    crowd = [p for p in up if p.name in CROWD_PEERS and p.connections >= CROWD]
    for round_number in range(ROUNDS):
        for peer in in_turn(crowd, round_number):
            results.add("crowd-alone", peer.name, load(peer.port, "ping -c 500"))
            wait_for_no_connections(peer)  # the limit is for those of both jobs
            results.add("crowd", peer.name, load(peer.port, f"ping -c 500 -i {CROWD - 500}"))
            wait_for_no_connections(peer)
    progress(f"relay {CROWD} connections, 500 of them active", began)


def relay_rounds(results, notes, run, prefix=""):
    """The jobs of the relay, or of HTTP. Names of those, and of those in TLS, begin with a
    prefix. Returns who was up."""
    say_who_is_missing(notes, prefix)
    # What a peer of HTTP keeps open afterwards would take a server's descriptors from the others.
    target = None if prefix == HTTP else start_server(run)
    up = bring_up(run, notes, target, choose=lambda peer: does_any(peer, prefix))
    notes.setdefault("peers", {}).update({p.name: p.version() for p in up})
    for name, what, arguments, _ in jobs_of(prefix):
        began = time.monotonic()
        for round_number in range(ROUNDS):
            for peer in in_turn([p for p in up if p.does(prefix + name)], round_number):
                figures = load_and_cost(peer, arguments, SECONDS * LONGER.get(name, 1),
                                        WARM.get(prefix + name))
                results.add(prefix + name, peer.name, figures)
        progress(f"{prefix or 'relay '}{what}", began)
    return up


def part_relay(results, notes):
    run = peers.Processes(os.path.join(OUT, "run", "relay"))
    try:
        up = relay_rounds(results, notes, run)
        if is_job("crowd"):
            crowd_rounds(results, up)
    finally:
        run.end()
    began = time.monotonic()
    for _ in range(min(ROUNDS, 3)):
        for peer in wanted_peers() if is_job("idle") else []:
            if peer.does("idle"):
                results.add("idle", peer.name, idle_memory(peer))
    progress(f"relay memory of {IDLE} idle connections", began)


# ---- http ----

def part_http(results, notes):
    run = peers.Processes(os.path.join(OUT, "run", "http"))
    try:
        relay_rounds(results, notes, run, HTTP)
    finally:
        run.end()
    began = time.monotonic()
    for _ in range(min(ROUNDS, 3)):
        for peer in wanted_peers() if is_job("kept") else []:
            if peer.does(HTTP + "kept"):
                results.add(HTTP + "kept", peer.name, idle_memory(peer, "kept"))
    progress(f"memory of {IDLE} connections that are kept", began)


# ---- link ----

def part_link(results, notes):
    notes["link"] = dict(THIN, rtts_ms=RTTS_MS)
    for rtt in (0, *RTTS_MS):
        if is_job(f"rtt{rtt}" if rtt else "thin"):
            link_part(results, notes, rtt)
    if is_job("deep"):
        deep_part(results, notes)


def deep_part(results, notes):
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        print("  link deep: it needs root and /dev/net/tun; left out")
        return
    notes["deep"] = DEEP
    for mbit, rtt, queue, bulk in DEEP:
        began = time.monotonic()
        for round_number in range(min(ROUNDS, 3)):
            for peer in in_turn([p for p in wanted_peers() if p.name in DEEP_PEERS], round_number):
                deep_one(results, peer, mbit, rtt, queue, bulk)
        progress(f"link {mbit} Mbit/s, {rtt} ms, {bulk} bulk", began)


def deep_one(results, peer, mbit, rtt, queue, bulk):
    """A ping beside bulk, through a link that the peer has for itself."""
    run = peers.Processes(os.path.join(OUT, "run", f"deep-{peer.name}"))
    figures = {}
    try:
        link = run.start("router", [f"{OUT}/router", str(mbit), str(rtt / 2), str(queue)])
        peer.near, peer.far = run.said(link, r"link (\S+ \S+)").split()
        peer.up(run, start_server(run))
        figures = load(peer.port, f"mixed -c {bulk}", DEEP_SECONDS, DEEP_WARM)
        figures["used"] = figures.get("MBps", 0) * 8 / mbit * 1500 / 1448  # with headers
        if figures.get("p99_us") == 0:  # no ping came back: it waited all the time, and longer
            figures["p50_us"] = figures["p99_us"] = DEEP_SECONDS * 1e6
    except (RuntimeError, OSError, subprocess.SubprocessError) as e:
        print(f"  {peer.name}: {e}")
    finally:
        run.end()
    results.add(f"deep-{mbit}-{rtt}-{bulk}", peer.name, figures)


def link_part(results, notes, rtt):
    """rtt 0 is the thin link. There nobody needs much of the processor: all peers at one time."""
    run = peers.Processes(os.path.join(OUT, "run", f"link-{rtt}"))
    options = [str(rtt / 2)]
    if rtt == 0:
        options = [str(THIN["one_way_ms"]), str(THIN["mbit"]), str(THIN["queue_kib"])]

    def line(port):
        return run.port_of(run.start("delay", [f"{OUT}/delay", str(port), *options]))

    began = time.monotonic()
    try:
        up = bring_up(run, notes, start_server(run), line,
                      lambda peer: peer.has_own_credit and peer.does("link"))
        for round_number in range(ROUNDS):
            if rtt == 0:
                thin_round(results, up)
                continue
            for peer in in_turn(up, round_number):
                warm = 10 * rtt / 1e3  # windows have so long to grow
                results.add(f"rtt{rtt}", peer.name, load(peer.port, "down", SECONDS, warm))
    finally:
        run.end()
    progress("link thin" if rtt == 0 else f"link {rtt} ms", began)


def thin_round(results, up):
    seconds, warm = (0.5, 0.3) if SMOKE else (4, 2)
    command = ["-c", "1", "-t", str(seconds), "-w", str(warm)]
    running = [(p, subprocess.Popen([f"{OUT}/load", "mixed", str(p.port), *command],
                                    stdout=subprocess.PIPE, text=True)) for p in up]
    for peer, process in running:
        figures = parse(process.communicate()[0].strip())
        if figures.get("p99_us") == 0:  # it waited all the time, and longer
            figures["p99_us"] = seconds * 1e6
        results.add("thin", peer.name, figures)


# ---- lib, engine ----

def part_lib(results, notes):
    go = peers.Yamux(BUILD)
    for job in LIB:
        began = time.monotonic()
        ways = ["lib"] + (["old"] if OLD else [])
        ways += ["yamux"] if job in YAMUX_LIB and not go.missing else []
        for round_number in range(ROUNDS):
            for way in in_turn(ways, round_number):
                if way == "yamux":
                    figures = measured([go.program, "lib", "-t", str(lib_seconds(job)), job])
                    results.add(f"lib-{job}", "yamux", figures)
                    continue
                lib_round(results, job, round_number, OLD if way == "old" else "")
        progress(f"lib {job}", began)


def lib_seconds(job):
    return SECONDS * LONGER.get(job, 1)


def lib_round(results, job, round_number, old):
    """Every way of build/bench/lib once."""
    program = [f"{old or BUILD}/bench/lib"]
    if old:  # bare sockets are the same everywhere
        program += ["-w", "revdial,spin,two,poll,engine"]
    lines = lines_of([*program, "-m", "-r", "1", "-s", str(round_number), "-t",
                      str(lib_seconds(job)), job], 200)
    for line in lines:
        way = re.search(r"way=(\S+)", line).group(1)
        results.add(f"lib-{job}", f"old-{way}" if old else way, parse(line))
    if not lines:
        results.add(f"lib-{job}", "old-revdial" if old else "revdial", {})


def part_engine(results, notes):
    began = time.monotonic()
    results.add("engine-memory", "revdial", measured([f"{OUT}/engine", "memory", "10000"]))
    frames = {"BENCH_FRAMES": "2000" if SMOKE else "20000", "REVDIAL_BUILD": BUILD}
    for text in lines_of(["sh", os.path.join(peers.HERE, "engine.sh"), *ENGINE], 300,
                         env=dict(os.environ, **frames)):
        if not text.startswith("memory"):
            name, what = text.split()[0], re.search(r'what="(.*)"', text).group(1)
            results.add(f"engine-{name}", "revdial", parse(text.split(" what=")[0]))
            notes.setdefault("engine", {})[name] = what
    progress("engine", began)


# ---- calls ----

def wants_calls(peer):
    return peer.name in ONLY or (peer.name != "direct" and does_any(peer))


def part_calls(results, notes):
    run = peers.Processes(os.path.join(OUT, "run", "calls"))
    began = time.monotonic()
    try:
        for peer in bring_up(run, notes, start_server(run), choose=wants_calls):
            for name, _, arguments, _ in RELAY:
                results.add(f"calls-{name}", peer.name, calls_of(run, peer, arguments))
    finally:
        run.end()
    progress("calls", began)


def calls_of(run, peer, arguments):
    """System calls for one message or megabyte, by name, as perf counts them."""
    time.sleep(0.3)  # what the job before has left is not this one's
    out = os.path.join(run.directory, "perf")
    pids = ",".join(str(p) for side in peer.sides for p in family(side.pid))
    figures = measured(["perf", "trace", "-s", "-o", out, "-p", pids, "--", f"{OUT}/load",
                        *arguments.split(), str(peer.port), "-t", str(3 * SECONDS)])
    if not figures.get("all"):
        return {}
    counts = {}
    with open(out) as f:
        for call, count in re.findall(r"^ +(\w+) +(\d+) +\d+ +[\d.]+ ", f.read(), re.MULTILINE):
            counts[call] = counts.get(call, 0) + int(count)
    return {call: n / figures["all"] for call, n in counts.items()}


# ---- tls ----

def part_tls(results, notes):
    run = peers.Processes(os.path.join(OUT, "run", "tls"))
    try:
        relay_rounds(results, notes, run, TLS)
    finally:
        run.end()
    if os.path.exists(f"{OUT}/tls") and is_job("alone"):
        tls_alone(results)


def tls_alone(results):
    began = time.monotonic()
    certs = peers.certificates(BUILD)
    files = [os.path.join(certs, name) for name in ("server.pem", "server.key", "ca.pem")]
    for line in lines_of([f"{OUT}/tls", *files, str(2 * SECONDS), str(ROUNDS)], 60 + 10 * ROUNDS):
        way = re.search(r"way=(\S+)", line).group(1)
        results.add("tls-alone", way, parse(line))
    progress("tls-bulk beside mbedTLS alone", began)


# ---- all of it ----

def progress(what, began):
    print(f"  {what:<52} {time.monotonic() - began:6.1f} s", flush=True)


def raise_limits():
    for most in (1 << 18, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return
        except (ValueError, OSError):
            continue


def machine():
    cpu = peers.version_of(["lscpu"], r"Model name:\s*(.*)")
    return {
        "processor": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} x {cpu}",
        "kernel": " ".join(os.uname()[i] for i in (0, 2, 4)),
        "compiler": peers.version_of([os.environ.get("CC", "cc"), "--version"], r"(.*)"),
        "load before": "%.1f %.1f %.1f" % os.getloadavg(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": str(ROUNDS),
        "seconds": str(SECONDS),
    }


PARTS = {"relay": part_relay, "link": part_link, "lib": part_lib, "engine": part_engine,
         "calls": part_calls, "http": part_http, "tls": part_tls}


def missing_old(parts):
    """What BENCH_OLD lacks for these parts, or None."""
    programs = {"relay": "revdial-proxy", "lib": "bench/lib"}
    paths = [os.path.join(OLD, programs[n]) for n in parts if OLD and n in programs]
    return next((path for path in paths if not os.access(path, os.X_OK)), None)


def main(names):
    wanted = names or [n for n in PARTS if n != "calls" and (n != "tls" or shutil.which("openssl"))]
    unknown = [n for n in wanted if n not in PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]}; there are {' '.join(PARTS)}", file=sys.stderr)
        return 2
    names = [kind.name for kind in peers.ALL]
    unknown = [n for n in ONLY if n not in names]
    if unknown:
        print(f"bench: no peer {unknown[0]}; there are {' '.join(names)}", file=sys.stderr)
        return 2
    missing = missing_old(wanted)
    if missing:
        print(f"bench: BENCH_OLD: no {missing}; make it in its directory", file=sys.stderr)
        return 2
    # SystemExit, so that each part ends its programs.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise_limits()
    if CPUS:
        os.sched_setaffinity(0, CPUS)  # children inherit it
    os.makedirs(OUT, exist_ok=True)
    results, notes = Results(), {"machine": machine()}
    for key, value in notes["machine"].items():
        print(f"{key + ':':<14}{value}")
    for name in wanted:
        print(name, flush=True)
        PARTS[name](results, notes)
    with open(os.path.join(OUT, "results.json"), "w") as f:
        json.dump({"notes": notes, "results": results.of}, f, indent=1)
    faults = notes.get("faults", []) + results.faults()
    report.write(OUT, results, notes, RELAY, [(HTTP + name, *rest) for name, *rest in REQUESTS])
    print("".join(f"\nbench: {fault}" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
