#!/usr/bin/env python3
"""The plot and the table of README.md, from what `make bench BENCH=relay` has left.

    python3 tests/bench/readme.py build/bench/results.json tests/bench/relay.svg

Writes the plot and prints the table.
"""
import json
import sys

sys.dont_write_bytecode = True  # nothing is written beside the sources

import report
import run
import svg

PEERS = {"direct": "no tunnel", "revdial": "revdial", "haproxy": "two HAProxies",
         "yamux": "Go, yamux", "ssh": "ssh -R"}
# Of the plot: job, figure, title.
PANELS = [("up1", "MBps", "bulk, 1 connection (MB/s)"),
          ("ping500", "per_s", "ping-pong, 500 connections (/s)"),
          ("touch32", "per_s", "connect + echo + close (/s)")]
ROWS = [("up1", "MBps", "bulk up, 1 connection, MB/s"),
        ("down1", "MBps", "bulk down, 1 connection, MB/s"),
        ("up16", "MBps", "bulk up, 16 connections, MB/s"),
        ("down16", "MBps", "bulk down, 16 connections, MB/s"),
        ("ping1", "p50_us", "ping-pong, 1 connection, median µs"),
        ("ping500", "per_s", "ping-pong, 500 connections, a second"),
        ("touch1", "per_s", "connect + echo + close, a second"),
        ("touch32", "per_s", "the same, 32 in flight"),
        ("mixed", "MBps", "4 bulk + 1 ping: MB/s"),
        ("mixed", "p50_us", "4 bulk + 1 ping: ping, median µs"),
        ("mixed", "p99_us", "4 bulk + 1 ping: ping, 99th percentile µs")]


def figure(value):
    """Three digits that count, and a comma from 10,000 on."""
    if value is None:
        return ""
    return f"{round(value, -2):,.0f}" if value >= 9999.5 else f"{value:.0f}"


def main(source, target):
    results = run.Results()
    with open(source) as f:
        results.of = json.load(f)["results"]
    panels = [(title, "", [(p, results.median(job, p, key)) for p in PEERS
                           if results.median(job, p, key) is not None])
              for job, key, title in PANELS]
    svg.bars(target, "make bench BENCH=relay: medians, more is better", panels, report.number)
    print("| | " + " | ".join(PEERS.values()) + " |")
    print("|---|" + "--:|" * len(PEERS))
    for job, key, title in ROWS:
        print(f"| {title} | " + " | ".join(figure(results.median(job, p, key)) for p in PEERS) +
              " |")
    both = [", ".join(figure(results.median("idle", p, f"{side}_bytes"))
                      for side in ("proxy", "agent")) if p != "direct" else "" for p in PEERS]
    print("| one idle connection, bytes on the proxy and the agent | " + " | ".join(both) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
