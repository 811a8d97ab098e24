#!/usr/bin/env python3
"""How much of each section of revdial.h the suites of `make test` reach.     make coverage

    tests/cover/coverage.py [--missing SECTION]      the lines and branches that nothing reached

Lines and branches are those of gcov at -O0, over all objects that the suites are made of. What
REVDIAL_ASSERT and REVDIAL_SELF_CHECK guard does not count: it exists to be never true. Fails where
a section is below its gate in gates.txt, or has none. Needs gcc.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

sys.dont_write_bytecode = True  # nothing is written beside the sources

from suites import HEADER, Tree, sections, self_checks  # noqa: E402

FLAGS = ['-O0', '-w', '--coverage']
GATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'gates.txt')


def instrument(tree, jobs):
    """Builds all suites; only the implementation counts what it does."""
    out = os.path.join(tree.path, 'out', 'counted')

    def build(name):
        target = os.path.join(out, name if name.endswith('.o') else name + '.o')
        counts = name.endswith('.o') or not tree.units[name].impl
        failed = tree.compile(name, target, FLAGS) if counts else tree.own_object(name) and None
        if failed:
            raise SystemExit(failed)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(build, sorted(tree.units)))
    for name in tree.suites:
        impl = tree.units[name].impl
        objects = [os.path.join(out, name + '.o')]
        if impl:
            objects = [tree.own_object(name), os.path.join(out, impl)]
        tree.link(objects, os.path.join(out, name), ['--coverage'])
    return out


def read_counts(data, out):
    """Lines and branches of the header in one gcov data file: {line: (count, [branches])}"""
    notes = os.path.basename(data)[:-len('.gcda')] + '.gcno'
    shutil.copy(os.path.join(out, notes), os.path.dirname(data))
    said = subprocess.run(['gcov', '--branch-probabilities', '--json-format', '--stdout', data],
                          stdout=subprocess.PIPE, check=True, cwd=os.path.dirname(data)).stdout
    counts = {}
    for file in json.loads(said)['files']:
        if os.path.basename(file['file']) != HEADER:
            continue
        for line in file['lines']:
            merge(counts, line['line_number'], line['count'],
                  [b['count'] for b in line['branches']])
    return counts


def merge(counts, line, count, branches):
    """Several functions, and several objects, may have the same line. Where a macro makes other
    branches of it in some object, those count of which more were taken."""
    known, taken = counts.get(line, (0, []))
    if len(taken) == len(branches):
        taken = [a + b for a, b in zip(taken, branches)]
    elif sum(n > 0 for n in branches) >= sum(n > 0 for n in taken):
        taken = branches
    counts[line] = (known + count, taken)


def run_counted(tree, name, out):
    data = os.path.join(out, 'data', name)
    os.makedirs(data)
    result = tree.run(os.path.join(out, name), 600,
                      {'GCOV_PREFIX': data, 'GCOV_PREFIX_STRIP': '99'})
    counts = {}
    for file in sorted(os.listdir(data)):
        for line, (count, taken) in read_counts(os.path.join(data, file), out).items():
            merge(counts, line, count, taken)
    shutil.rmtree(data)
    print('  %-20s %s in %.0f s' % (name, result.verdict, result.seconds), flush=True)
    return {'verdict': result.verdict, 'seconds': result.seconds,
            'counts': [[line, count, taken] for line, (count, taken) in sorted(counts.items())]}


def measure(tree, jobs):
    """What each suite reaches; from the last time, if nothing has changed since."""
    kept = os.path.join(tree.scratch, 'counts.json')
    if os.path.exists(kept):
        with open(kept) as file:
            known = json.load(file)
        if known['key'] == tree.key:
            return known['suites']
    out = instrument(tree, jobs)
    with ThreadPoolExecutor(2 * jobs) as pool:  # suites wait more than they work
        found = pool.map(lambda name: run_counted(tree, name, out), tree.suites)
        suites = dict(zip(tree.suites, found))
    with open(kept, 'w') as file:
        json.dump({'key': tree.key, 'suites': suites}, file)
    return suites


class Table:
    def __init__(self, tree, suites):
        self.counts, self.lines = {}, tree.lines
        self.names, self.ignored = sections(tree.lines), self_checks(tree.lines)
        for suite in suites.values():
            for line, count, taken in suite['counts']:
                merge(self.counts, line, count, taken)

    def of(self, section):
        """What counts of a section: [(line, count, branches)]"""
        found = []
        for line, (count, taken) in sorted(self.counts.items()):
            if self.names[line - 1] == section and line - 1 not in self.ignored:
                asserts = 'REVDIAL_ASSERT' in self.lines[line - 1]
                found.append((line, count, [] if asserts else taken))
        return found

    def row(self, section):
        lines = [count > 0 for _, count, _ in self.of(section)]
        branches = [count > 0 for _, _, taken in self.of(section) for count in taken]
        return lines, branches

    def missing(self, section):
        for line, count, taken in self.of(section):
            if not count or 0 in taken:
                what = '-' if not count else '%d/%d' % (sum(c > 0 for c in taken), len(taken))
                print('%6d %6s  %s' % (line, what, self.lines[line - 1]))


def percent(reached):
    """Rounded down, so that 100.0 is all."""
    return int(1000 * sum(reached) / len(reached)) / 10 if reached else 100.0


def read_gates():
    with open(GATES) as file:
        rows = [line.split() for line in file if line.strip() and not line.startswith('#')]
    return {name: (float(lines), float(branches)) for name, lines, branches in rows}


def report(table):
    gates, failed, whole = read_gates(), 0, ([], [])
    print('%-10s %7s %7s %6s %9s %7s %6s' % ('section', 'lines', 'reached', 'gate', 'branches',
                                             'taken', 'gate'))
    for section in dict.fromkeys(name for name in table.names if name):
        row = table.row(section)
        gate = gates.get(section, (100.0, 100.0))
        below = [percent(part) < least for part, least in zip(row, gate)]
        failed += any(below)
        print('%-10s %7d %6.1f%% %5.1f%% %9d %6.1f%% %5.1f%%%s' % (
            section, len(row[0]), percent(row[0]), gate[0], len(row[1]), percent(row[1]), gate[1],
            '  BELOW ITS GATE' if any(below) else ''))
        for part, all_of_it in zip(row, whole):
            all_of_it.extend(part)
    print('%-10s %7d %6.1f%% %6s %9d %6.1f%%' % ('all', len(whole[0]), percent(whole[0]), '',
                                                 len(whole[1]), percent(whole[1])))
    return failed


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--missing', metavar='SECTION')
    arguments.add_argument('--jobs', type=int, default=os.cpu_count() or 2)
    wanted = arguments.parse_args()
    tree = Tree()
    suites = measure(tree, wanted.jobs)
    broken = [name for name, suite in suites.items() if suite['verdict'] != 'passed']
    table = Table(tree, suites)
    if wanted.missing:
        table.missing(wanted.missing)
        return 0
    failed = report(table)
    for name in broken:
        print('%s did not pass' % name)
    sections_count = len({name for name in table.names if name})
    print('%d passed, %d failed' % (sections_count - failed, failed + len(broken)))
    return 1 if failed or broken else 0


if __name__ == '__main__':
    sys.exit(main())
