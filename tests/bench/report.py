"""What the benchmark says: text for the terminal, the same as markdown, and plots as SVG."""
import os

import peers
import svg

UNITS = {"MBps": "MB/s", "per_s": "/s", "p50_us": "us p50", "p99_us": "us p99",
         "fair": "least share"}
LESS_IS_MORE = ("p50_us", "p99_us")
REFERENCE = "haproxy"
TLS_REFERENCE = "haproxy-tls"
HTTP_REFERENCE = "haproxy-http"


def number(value):
    if value is None:
        return "-"
    if value >= 9999.5:
        return f"{value / 1000:.1f}k" if value < 99950 else f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


class Table:
    """Rows of text, printed with columns that line up and written as markdown."""

    def __init__(self, title, head):
        self.title, self.rows = title, [head]

    def add(self, *cells):
        self.rows.append([str(c) for c in cells])

    def is_empty(self):
        return len(self.rows) < 2

    def text(self):
        widths = [max(len(row[i]) for row in self.rows) for i in range(len(self.rows[0]))]
        lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                           for i, (c, w) in enumerate(zip(row, widths))).rstrip()
                 for row in self.rows]
        return f"\n{self.title}\n" + "\n".join(lines)

    def markdown(self):
        lines = ["| " + " | ".join(row) + " |" for row in self.rows]
        lines.insert(1, "|---|" + "--:|" * (len(self.rows[0]) - 1))
        return f"\n### {self.title}\n\n" + "\n".join(lines)


def names_in(results, jobs):
    """Peers in the order in which they first appear."""
    found = []
    for job in jobs:
        found += [p for p in results.of.get(job, {}) if p not in found]
    order = [kind.name for kind in peers.ALL]
    return sorted(found, key=order.index)


# ---- tables ----

def relay_table(results, jobs, title="Relay", reference=REFERENCE):
    names = names_in(results, [j[0] for j in jobs])
    table = Table(f"{title}, one load generator (in brackets: ratio to {reference})",
                  ["job", ""] + names)
    for job, what, _, keys in jobs:
        for key in keys if job in results.of else []:
            cells = []
            for name in names:
                ratio = results.ratio(job, name, reference, key)
                value = number(results.median(job, name, key))
                cells.append(value if ratio is None or key == "fair" or name == reference
                             else f"{value} ({ratio:.2f})")
            table.add(what, UNITS[key], *cells)
    return table


def cost_table(results, jobs):
    """What others do to the machine meanwhile changes little here."""
    names = [n for n in names_in(results, [j[0] for j in jobs]) if n != "direct"]
    table = Table("What both sides of a tunnel spend on one message, or on one megabyte of bulk",
                  ["job", ""] + names)
    for job, what, _, _ in jobs if names else []:
        for key, unit in ("cpu_us", "us CPU"), ("switches", "switches"):
            if job in results.of:
                table.add(what, unit, *[number(results.median(job, n, key)) for n in names])
    return table


def kept_table(results):
    table = Table("A connection of HTTP that is kept, after one request",
                  ["peer", "bytes of the first proxy", "of the second"])
    for name in names_in(results, ["http-kept"]):
        table.add(name, number(results.median("http-kept", name, "proxy_bytes")),
                  number(results.median("http-kept", name, "agent_bytes")))
    return table


def alone_table(results):
    table = Table("Bulk by mbedTLS from one process to another",
                  ["way", "MB/s", "to alone", "us CPU of a MB", "to alone"])
    for way in results.of.get("tls-alone", {}):
        cells = []
        for key in "MBps", "cpu_us":
            ratio = results.ratio("tls-alone", way, "alone", key)
            cells += [number(results.median("tls-alone", way, key)),
                      "-" if ratio is None else f"{ratio:.2f}"]
        table.add(way, *cells)
    return table


def calls_table(results, jobs):
    """The four system calls that are most, and all of them."""
    table = Table("System calls of both sides for one message, or for one megabyte of bulk",
                  ["job", "peer", "all", "most"])
    for job, what, _, _ in jobs:
        for name in names_in(results, [f"calls-{job}"]):
            calls = {}
            for counted in results.of[f"calls-{job}"][name]:
                for call, n in counted.items():
                    calls[call] = max(n, calls.get(call, 0))
            most = sorted(calls.items(), key=lambda item: -item[1])[:4]
            table.add(what, name, number(sum(calls.values())),
                      ", ".join(f"{call} {number(n)}" for call, n in most))
    return table


def change_table(results, jobs):
    """What a change has brought, or what options bring."""
    head = ["job", "", "to BENCH_OLD", "BENCH_WITH to it"]
    table = Table("Ratios of one revdial to another", head)
    for job, what, key in [(j, w, k) for j, w, _, keys in jobs for k in keys]:
        ratios = (results.ratio(job, "revdial", "revdial-old", key),
                  results.ratio(job, "revdial-with", "revdial", key))
        if ratios != (None, None):
            table.add(what, UNITS[key], *["-" if r is None else f"{r:.2f}" for r in ratios])
    for job in [j for j in results.of if j.startswith("lib-")]:
        for way in results.of[job]:
            ratio = results.ratio(job, way, f"old-{way}", "rate")
            if ratio is not None:
                table.add(f"{job}, {way}", "/s", f"{ratio:.2f}", "-")
    return table


def crowd_table(results):
    table = Table("Idle connections", ["peer", "500 active alone /s", "500 active of all /s",
                                       "ratio", "bytes of one idle, proxy", "agent"])
    for name in names_in(results, ["crowd", "idle"]):
        ratio = results.ratio("crowd", name, name, "per_s", "crowd-alone")
        table.add(name, number(results.median("crowd-alone", name, "per_s")),
                  number(results.median("crowd", name, "per_s")),
                  "-" if ratio is None else f"{ratio:.2f}",
                  number(results.median("idle", name, "proxy_bytes")),
                  number(results.median("idle", name, "agent_bytes")))
    return table


def link_table(results, notes):
    link = notes.get("link")
    if not link:
        return Table("", [])
    rtts = [r for r in link["rtts_ms"] if f"rtt{r}" in results.of]
    table = Table(f"Links: thin is {link['one_way_ms']} ms each way, {link['mbit']} Mbit/s, "
                  f"{link['queue_kib']} KiB queue; the others have no limit; "
                  "a ping that does not come back counts as long as it was watched",
                  ["peer", "thin: bulk MB/s", "thin: ping p99 ms"] +
                  [f"RTT {r} ms: MB/s" for r in rtts])
    for name in names_in(results, ["thin"] + [f"rtt{r}" for r in rtts]):
        p99 = results.median("thin", name, "p99_us")
        table.add(name, number(results.median("thin", name, "MBps")),
                  number(p99 and p99 / 1e3),
                  *[number(results.median(f"rtt{r}", name, "MBps")) for r in rtts])
    return table


def deep_table(results, notes):
    rows = [(r, f"deep-{r[0]}-{r[1]}-{r[3]}") for r in notes.get("deep", [])]
    names = names_in(results, [job for _, job in rows])
    table = Table("A ping beside bulk uploads, real TCP through a router with a deep queue: "
                  "p50 / p99 ms, part of the link used", ["link", "bulk"] + names)
    for (mbit, rtt, queue, bulk), job in rows:
        cells = []
        for name in names:
            p50, p99, used = (results.median(job, name, k) for k in ("p50_us", "p99_us", "used"))
            cells.append("-" if not p99 else f"{p50 / 1e3:.0f} / {p99 / 1e3:.0f}, {used:.2f}")
        table.add(f"{mbit} Mbit/s, {rtt} ms, {queue} kB", str(bulk), *cells)
    return table


def lib_table(results):
    table = Table("The library alone: two processes, one TCP connection on loopback",
                  ["job", "way", "rate", "to bare", "p50 us", "p99 us", "CPU us each",
                   "bytes each"])
    for job in [j for j in results.of if j.startswith("lib-")]:
        for way in results.of[job]:
            ratio = results.ratio(job, way, "bare", "rate")
            memory = results.median(job, way, "memory")
            table.add(job[4:], way, number(results.median(job, way, "rate")),
                      "-" if ratio is None else f"{ratio:.2f}",
                      number(results.median(job, way, "p50_us")),
                      number(results.median(job, way, "p99_us")),
                      number(results.median(job, way, "cpu_us")),
                      number(memory) if memory and memory > 0 else "-")
    return table


def engine_table(results, notes):
    table = Table("The engine without sockets", ["job", "what", "instructions", "frames/s"])
    for name, what in notes.get("engine", {}).items():
        job = f"engine-{name}"
        table.add(name, what, number(results.median(job, "revdial", "instructions")),
                  number(results.median(job, "revdial", "per_s")))
    memory = results.median("engine-memory", "revdial", "bytes_each")
    if memory is not None:
        table.add("memory", "bytes of one idle stream", number(memory), "")
    return table


# ---- aims ----

class Aims:
    """What must be reached, and whether it was. What was not measured has no row."""

    def __init__(self, results):
        self.results = results
        self.table = Table("Aims", ["what", "against", "aim", "measured", "reached"])

    def add(self, what, against, aim, value, is_reached, form="{:.2f} x"):
        if value is not None:
            self.table.add(what, against, aim, form.format(value), "yes" if is_reached else "NO")

    def least(self, what, against, least, value, form="{:.2f} x"):
        self.add(what, against, f">= {form.format(least)}", value,
                 value is not None and value >= least, form)

    def most(self, what, against, most, value, form="{:.2f} x"):
        self.add(what, against, f"<= {form.format(most)}", value,
                 value is not None and value <= most, form)

    def ratio(self, job, other, key):
        return self.results.ratio(job, "revdial", other, key)


def relay_aims(aims):
    other = "two HAProxies"
    for job, what, least in (("up1", "bulk up, 1 connection", 1.4),
                             ("down1", "bulk down, 1 connection", 1.4),
                             ("up16", "bulk up, 16 connections", 1.6),
                             ("down16", "bulk down, 16 connections", 1.6)):
        aims.least(what, other, least, aims.ratio(job, REFERENCE, "MBps"))
    aims.most("ping-pong, 1 connection, p50", other, 0.9, aims.ratio("ping1", REFERENCE, "p50_us"))
    aims.least("ping-pong, 500 connections", other, 2.5, aims.ratio("ping500", REFERENCE, "per_s"))
    aims.least("connect + echo + close", other, 1.2, aims.ratio("touch1", REFERENCE, "per_s"))
    aims.least("the same, 32 in flight", other, 2.0, aims.ratio("touch32", REFERENCE, "per_s"))
    for job, what, least in (("touch1", "connect + echo + close, --early", 1.2),
                             ("touch32", "the same, 32 in flight, --early", 2.0)):
        aims.least(what, other, least, aims.results.ratio(job, "revdial-early", REFERENCE, "per_s"))
    aims.most("4 bulk + 1 ping: p99", other, 0.2, aims.ratio("mixed", REFERENCE, "p99_us"))
    aims.least("4 bulk + 1 ping: bulk", other, 1.6, aims.ratio("mixed", REFERENCE, "MBps"))
    for name in "yamux", "ssh":
        for job, key, is_time in (
                ("up1", "MBps", 0), ("down1", "MBps", 0), ("up16", "MBps", 0),
                ("down16", "MBps", 0), ("ping1", "p50_us", 1), ("ping500", "per_s", 0),
                ("touch1", "per_s", 0), ("touch32", "per_s", 0), ("mixed", "p99_us", 1),
                ("mixed", "MBps", 0)):
            value = aims.ratio(job, name, key)
            if is_time:
                aims.most(f"{job} {UNITS[key]}", name, 0.6, value)
            else:
                aims.least(f"{job} {UNITS[key]}", name, 2, value)
    for job in "up16", "down16":
        aims.least(f"{job}: least share of 16", "their mean", 0.9,
                   aims.results.median(job, "revdial", "fair"), "{:.2f}")


def tls_aims(aims):
    results = aims.results
    for job, what in (("up1", "bulk up, 1 connection"), ("down1", "bulk down, 1 connection"),
                      ("up16", "bulk up, 16 connections"), ("down16", "bulk down, 16 connections")):
        for other, least in (TLS_REFERENCE, 1), ("frp-tls", 1.5):
            aims.least(f"{what}, TLS by OpenSSL", other, least,
                       results.ratio(f"tls-{job}", "revdial-openssl", other, "MBps"))
    aims.least("bulk of a stream, TLS by mbedTLS", "mbedTLS alone", 0.9,
               results.ratio("tls-alone", "stream", "alone", "MBps"))


def http_aims(aims):
    results = aims.results
    for job, what in (("request1", "1 connection"), ("request100", "100 connections"),
                      ("requests", "thousands of connections")):
        aims.least(f"requests of HTTP, {what}", "HAProxy", 0.8,
                   results.ratio(f"http-{job}", "revdial-http", HTTP_REFERENCE, "per_s"))
    aims.least("requests of HTTP, thousands of connections", "100", 0.8,
               results.ratio("http-requests", "revdial-http", "revdial-http", "per_s",
                             "http-request100"))


def idle_aims(aims):
    results = aims.results
    aims.least("500 active of 10,000", "500 alone", 0.8,
               results.ratio("crowd", "revdial", "revdial", "per_s", "crowd-alone"))
    for side in "proxy", "agent":
        aims.most(f"idle relayed connection, {side}", "", 1024,
                  results.median("idle", "revdial", f"{side}_bytes"), "{:.0f} bytes")


def link_aims(aims, notes):
    results = aims.results
    for rtt in notes.get("link", {}).get("rtts_ms", []):
        window = (16 << 20) / (rtt / 1e3) / 1e6
        value = results.median(f"rtt{rtt}", "revdial", "MBps")
        if value is not None and rtt >= 100:
            aims.least(f"1 stream, RTT {rtt} ms, after 10 RTT", f"{window:.0f} MB/s", 0.8,
                       value / window)
    aims.most("thin link: ping p99", "yamux", 0.5, aims.ratio("thin", "yamux", "p99_us"))
    aims.least("thin link: bulk", "yamux", 0.9, aims.ratio("thin", "yamux", "MBps"))


DEEP_AIMS_MS = {(10, 40, 1): 60, (10, 40, 8): 65, (100, 40, 4): 60, (50, 100, 16): 125,
                (2, 80, 2): 130}


def deep_aims(aims):
    for (mbit, rtt, bulk), most in DEEP_AIMS_MS.items():
        job = f"deep-{mbit}-{rtt}-{bulk}"
        p99 = aims.results.median(job, "revdial", "p99_us")
        aims.most(f"{mbit} Mbit/s, {rtt} ms, {bulk} bulk: ping p99", "", most, p99 and p99 / 1e3,
                  "{:.0f} ms")
        aims.least(f"{mbit} Mbit/s, {rtt} ms, {bulk} bulk: link used", "",
                   0.95 if rtt < 100 else 0.9, aims.results.median(job, "revdial", "used"))


def lib_aims(aims):
    results = aims.results
    for job in "bulk1", "ping1":
        aims.least(f"library, {job}", "bare socket", 0.85,
                   aims.ratio(f"lib-{job}", "bare", "rate"))
    aims.least("library, ping1, polling before sleep", "bare socket", 3,
               results.ratio("lib-ping1", "spin", "bare", "rate"))
    for way in "revdial", "spin":
        aims.most(f"library, asleep, {way}: CPU", "", 1000,
                  results.median("lib-asleep", way, "cpu_us"), "{:.0f} us/s")
    for job in "ping1000", "open64":
        for way, least in (("revdial", 2.5), ("poll", 4), ("engine", 4)):
            aims.least(f"library, {job}, {way}", "yamux", least,
                       results.ratio(f"lib-{job}", way, "yamux", "rate"))
    aims.least("library, ping1 beside 10,000 idle streams", "beside 10", 0.97,
               results.ratio("lib-idle10000", "revdial", "revdial", "rate", "lib-idle10"))


def engine_aims(aims):
    results = aims.results
    aims.most("engine, 64 bytes in and read", "", 300,
              results.median("engine-in64", "revdial", "instructions"), "{:.0f} instructions")
    many = results.median("engine-in64-idle", "revdial", "instructions")
    one = results.median("engine-in64", "revdial", "instructions")
    if many and one:
        aims.most("engine, the same beside 10,000 idle streams", "alone", 1.01, many / one)
    aims.most("engine, idle stream", "", 512,
              results.median("engine-memory", "revdial", "bytes_each"), "{:.0f} bytes")


def aims_table(results, notes):
    aims = Aims(results)
    relay_aims(aims)
    tls_aims(aims)
    http_aims(aims)
    idle_aims(aims)
    link_aims(aims, notes)
    deep_aims(aims)
    lib_aims(aims)
    engine_aims(aims)
    return aims.table


# ---- plots ----

def plotted(keys):
    """What a job is about; with bulk beside it, the wait of a ping as well."""
    return keys[:2] if keys[:2] == ["MBps", "p99_us"] else keys[:1]


def write_plots(out, results, notes, jobs):
    """Returns the names of the files."""
    written = []
    names = names_in(results, [j[0] for j in jobs])
    panels = []
    for job, what, key in [(j, w, k) for j, w, _, keys in jobs for k in plotted(keys)]:
        values = [(n, results.median(job, n, key)) for n in names]
        values = [(n, v) for n, v in values if v is not None]
        if values:
            note = "less is better" if key in LESS_IS_MORE else ""
            panels.append((f"{what} ({UNITS[key]})", note, values))
    if panels:
        written.append("relay.svg")
        svg.bars(os.path.join(out, "relay.svg"), "Relay: median of each job", panels, number)
    rows = []
    for name in names:
        points = [results.median(job, name, key) for job in ("ping1", "mixed")
                  for key in ("p50_us", "p99_us")]
        if None not in points and 0 not in points:
            rows.append((name, points[:2], points[2:]))
    if rows:
        written.append("latency.svg")
        svg.ranges(os.path.join(out, "latency.svg"),
                   "A 64-byte ping-pong, p50 to p99: alone, and beside 4 bulk transfers", rows)
    rtts = [r for r in notes.get("link", {}).get("rtts_ms", []) if f"rtt{r}" in results.of]
    lines = {}
    for rtt in rtts:
        for name in names_in(results, [f"rtt{rtt}"]):
            value = results.median(f"rtt{rtt}", name, "MBps")
            if value:
                lines.setdefault(name, []).append((rtt, value))
    if lines:
        lines["16 MiB per RTT"] = [(r, (16 << 20) / (r / 1e3) / 1e6) for r in rtts]
        written.append("rtt.svg")
        svg.curves(os.path.join(out, "rtt.svg"), "One stream over a long link, no limit", lines)
    lines = {}
    for mbit, rtt, _, bulk in notes.get("deep", []):
        for name in names_in(results, [f"deep-{mbit}-{rtt}-{bulk}"]) if mbit == 10 else []:
            value = results.median(f"deep-{mbit}-{rtt}-{bulk}", name, "p99_us")
            if value:
                lines.setdefault(name, []).append((bulk, value / 1e3))
    if lines:
        written.append("deep.svg")
        svg.curves(os.path.join(out, "deep.svg"),
                   "A ping beside bulk uploads: 10 Mbit/s, 40 ms, a second of queue", lines,
                   ("bulk streams", "p99, ms"))
    return written


def write(out, results, notes, jobs, requests):
    """Prints everything, writes results.md and the plots."""
    tls = [(f"tls-{job}", *rest) for job, *rest in jobs]
    tables = [relay_table(results, jobs), cost_table(results, jobs),
              relay_table(results, tls, "Relay with TLS in the tunnel", TLS_REFERENCE),
              cost_table(results, tls),
              relay_table(results, requests, "HTTP by Host", HTTP_REFERENCE),
              cost_table(results, requests), kept_table(results), alone_table(results),
              calls_table(results, jobs), crowd_table(results), link_table(results, notes),
              deep_table(results, notes), lib_table(results),
              engine_table(results, notes), change_table(results, jobs),
              aims_table(results, notes)]
    tables = [t for t in tables if not t.is_empty()]
    facts = dict(notes["machine"], **notes.get("peers", {}))
    with open(os.path.join(out, "results.md"), "w") as f:
        f.write("".join(f"- {k}: {v}\n" for k, v in facts.items() if v))
        f.write("\n".join(t.markdown() + "\n" for t in tables))
    print("\n".join(t.text() for t in tables))
    print("\n" + "\n".join(f"{k}: {v}" for k, v in notes.get("peers", {}).items() if v))
    written = ["results.md", "results.json", *write_plots(out, results, notes, jobs)]
    print("\nwritten: " + " ".join(os.path.join(out, n) for n in written))
