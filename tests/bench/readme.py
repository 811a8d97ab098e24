#!/usr/bin/env python3
"""The table of README.md, from what `make bench BENCH=relay` has left, and the plot of that table.

    python3 tests/bench/readme.py table build/bench/results.json      prints the table
    python3 tests/bench/readme.py plot README.md tests/bench/relay.svg
"""
import json
import sys

sys.dont_write_bytecode = True  # nothing is written beside the sources

import report
import run
import svg

PEERS = {"direct": "no tunnel", "revdial": "revdial", "haproxy": "two HAProxies",
         "yamux": "Go, yamux", "ssh": "ssh -R"}
ROWS = [("up1", "MBps", "bulk up, 1 connection, MB/s"),
        ("down1", "MBps", "bulk down, 1 connection, MB/s"),
        ("up16", "MBps", "bulk up, 16 connections, MB/s"),
        ("down16", "MBps", "bulk down, 16 connections, MB/s"),
        ("ping1", "p50_us", "ping-pong, 1 connection, median µs"),
        ("ping500", "per_s", "ping-pong, 500 connections, round trips/s"),
        ("touch1", "per_s", "connect + echo + close, connections/s"),
        ("touch32", "per_s", "the same, 32 in flight"),
        ("mixed", "MBps", "4 bulk + 1 ping: MB/s"),
        ("mixed", "p50_us", "4 bulk + 1 ping: ping, median µs"),
        ("mixed", "p99_us", "4 bulk + 1 ping: ping, 99th percentile µs")]
PLOTTED = ["bulk up, 1 connection, MB/s", "ping-pong, 500 connections, round trips/s",
           "the same, 32 in flight"]


def figure(value):
    """Whole numbers; from 10,000 on to the hundred, with a comma."""
    if value is None:
        return ""
    return f"{round(value, -2):,.0f}" if value >= 9999.5 else f"{value:.0f}"


def table(source):
    results = run.Results()
    with open(source) as f:
        results.of = json.load(f)["results"]
    print("| | " + " | ".join(PEERS.values()) + " |")
    print("|---|" + "--:|" * len(PEERS))
    for job, key, title in ROWS:
        print(f"| {title} | " + " | ".join(figure(results.median(job, p, key)) for p in PEERS) +
              " |")
    both = [", ".join(figure(results.median("idle", p, f"{side}_bytes"))
                      for side in ("proxy", "agent")) if p != "direct" else "" for p in PEERS]
    print("| one idle connection, bytes on the proxy and the agent | " + " | ".join(both) + " |")


def plot(source, target):
    rows = {}
    with open(source) as f:
        for line in f:
            cells = [c.strip() for c in line.strip().strip("|").split("|")]
            if cells[0] in PLOTTED:
                rows[cells[0]] = [float(c.replace(",", "")) for c in cells[1:]]
    panels = [(name.replace("the same", "connect + echo + close"), "more is better",
               list(zip(PEERS, rows[name]))) for name in PLOTTED]
    svg.bars(target, "make bench BENCH=relay", panels, report.number)


if __name__ == "__main__":
    {"table": table, "plot": plot}[sys.argv[1]](*sys.argv[2:])
