#!/usr/bin/env python3
"""What do the suites of `make test` notice? Changes revdial.h at random, one place at a time.

    make mutate COUNT=200 SEED=1           as many mutants, in each section in turn
    make mutate MUTANT='mux:12 pace:3'     these of that SEED again; FULL=1: by all suites
    tests/cover/mutate.py --sections 'mux wire' --from 50 ...
    tests/cover/mutate.py --list           how many there are to draw from, in a second

A mutant is one change in a function: of a relation, an operator, a number (by 1) or a condition; a
statement that goes, or becomes a return; two arguments that change places. It is noticed when a
suite fails, or takes ten times as long as it should. Only suites that reach the changed lines run,
first those that find the most in the least time. A suite with threads has to fail twice. Assertions
and what REVDIAL_SELF_CHECK guards are not changed. What does not compile does not count, nor does a
survivor for which the compiler writes the same code at -O1: others are drawn.

The number of a mutant is that of its draw: it stays the same while SEED and revdial.h do.
Everything is done in a copy below build/. Ends with the ratios and all survivors. Needs gcc.
"""
import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

sys.dont_write_bytecode = True  # nothing is written beside the sources

from coverage import measure  # noqa: E402
from mutants import KINDS, all_mutants, apply, functions  # noqa: E402
from suites import HEADER, Tree, sections, self_checks  # noqa: E402

SECTIONS = 'mux stream pace proxy'
CORE = ('impl-core.o', 'impl-checked.o')
IN_VIRTUAL_TIME = ('test_world',)
# As few warnings as possible, but what a compiler refuses elsewhere is refused here.
FLAGS = ['-O0', '-w']
REFUSED = ['-O0', '-Wno-all', '-Wno-extra', '-Werror=incompatible-pointer-types',
           '-Werror=int-conversion', '-Werror=implicit-function-declaration']

Outcome = namedtuple('Outcome', 'section number mutant changed verdict by seconds')


class Laboratory:
    """Builds mutants and has the suites look for them."""

    def __init__(self, tree, jobs, is_full):
        self.tree, self.jobs, self.is_full = tree, jobs, is_full
        self.suites = measure(tree, jobs)
        self.out = os.path.join(tree.path, 'out', 'mutant')
        os.makedirs(self.out, exist_ok=True)
        self.lines, self.open = tree.lines, self.read('out/open/' + HEADER)
        self.names, self.ignored = sections(self.lines), self_checks(self.lines)
        self.spans = functions(self.lines, self.ignored)
        self.found = {}  # (section or 'all', suite): [mutants killed, mutants met]
        self.reached, self.counted = {}, set()
        for name, suite in self.suites.items():
            if suite['verdict'] != 'passed':
                print('%s does not pass without a change: it is left out' % name)
                continue
            self.reached[name] = {line for line, count, _ in suite['counts'] if count}
            self.counted |= {line for line, _, _ in suite['counts']}

    def read(self, path):
        with open(os.path.join(self.tree.path, path)) as file:
            return file.read().splitlines()

    def write(self, changed):
        """The two forms of the header, with some lines changed; {} is the original."""
        for path, lines, first in ((HEADER, self.lines, 0), ('out/open/' + HEADER, self.open, 1)):
            lines = list(lines)
            for n, text in changed.items():
                lines[n + first] = text
            with open(os.path.join(self.tree.path, path), 'w') as file:
                file.write('\n'.join(lines) + '\n')

    def worth(self, section, name):
        """How likely a suite is to find a mutant of the section, in each second."""
        killed, met = self.found.get(('all', name), (0, 0))
        likely = (killed + 0.5) / (met + 5)
        killed, met = self.found.get((section, name), (0, 0))
        build = 0.3 if self.tree.units[name].impl else 5  # seconds
        return (killed + 2 * likely) / (met + 2) / (self.suites[name]['seconds'] + build)

    def candidates(self, changed):
        """The suites that reach a changed line, the worthiest first."""
        wanted = {n + 1 for n in changed}
        if self.is_full or not wanted & self.counted:  # a line without code of its own
            span = next(f for f in self.spans if f.first <= min(changed) <= f.last)
            wanted = set(range(span.first + 1, span.last + 2))
        names = [name for name, lines in self.reached.items() if wanted & lines]
        section = self.names[min(changed)]
        return sorted(names, key=lambda name: self.worth(section, name), reverse=True)

    def object(self, name):
        return os.path.join(self.out, name if name.endswith('.o') else name + '.o')

    def build(self, name):
        """The program of a suite, with the mutant in it."""
        impl = self.tree.units[name].impl
        if not impl:
            failed = self.tree.compile(name, self.object(name), FLAGS)
            objects = [self.object(name)]
        else:
            failed = None
            with self.lock:
                if impl not in self.built:
                    failed = self.tree.compile(impl, self.object(impl), FLAGS)
                    self.built.add(impl)
            objects = [self.tree.own_object(name), self.object(impl)]
        if failed:
            raise RuntimeError(failed)
        program = os.path.join(self.out, name)
        self.tree.link(objects, program, [])
        return program

    def look(self, name):
        """Has a suite look; returns what it notices, or None."""
        if self.stop.is_set():
            return None
        program = self.build(name)
        is_pure = self.tree.units[name].impl in CORE or name in IN_VIRTUAL_TIME
        limit = max(10 if is_pure else 30, 10 * self.suites[name]['seconds'])
        for _ in range(1 if is_pure else 2):
            verdict = self.tree.run(program, limit, stop=self.stop).verdict
            if verdict != 'failed':
                break
        os.remove(program)
        if verdict == 'stopped':
            return None
        for section in (self.section, 'all'):
            found = self.found.setdefault((section, name), [0, 0])
            found[0] += verdict != 'passed'
            found[1] += 1
        if verdict == 'passed':
            return None
        self.stop.set()
        return '%s %s' % (name, verdict)

    def compiles(self, section, changed):
        unit = self.impl_of(section)
        self.built, self.lock, self.stop = {unit}, threading.Lock(), threading.Event()
        self.write(changed)
        return self.tree.compile(unit, self.object(unit), REFUSED) is None

    def impl_of(self, section):
        """The smallest object that contains the section."""
        core = self.names.index('sys')
        return 'impl-core.o' if self.names.index(section) < core else 'impl.o'

    def is_same_code(self, section):
        """Does the compiler see no difference?"""
        codes = []
        unit, target = self.impl_of(section), self.object('optimised.o')
        for changed in (self.changed, {}):
            self.write(changed)
            if self.tree.compile(unit, target, ['-O1', '-w']):
                raise RuntimeError('%s does not compile at -O1' % unit)
            with open(target, 'rb') as file:
                codes.append(file.read())
        self.write({})
        return codes[0] == codes[1]

    def judge(self, section, changed):
        """'invalid', 'same', 'survived' or 'killed', and by what."""
        self.section, self.changed = section, changed
        if not self.compiles(section, changed):
            return 'invalid', ''
        names = self.candidates(changed)
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                notices = [said for said in pool.map(self.look, names) if said]
            finally:  # also when this run is to end
                self.stop.set()
        if notices:
            return 'killed', notices[0]
        if self.is_same_code(section):
            return 'same', ''
        return 'survived', 'of %d suites' % len(names) if names else 'not reached'


def draws(tree, section, seed, mutants):
    """The mutants of a section in the order of a seed, each once: kinds are equally likely."""
    choice = random.Random('%s %s' % (seed, section))
    left = {kind: list(mutants[kind]) for kind in KINDS}
    while any(left.values()):
        kind = choice.choice([kind for kind in KINDS if left[kind]])
        mutant = left[kind].pop(choice.randrange(len(left[kind])))
        changed = apply(tree.lines, mutant)
        if any(tree.lines[n] != text for n, text in changed.items()):
            yield mutant, changed


def describe(lines, outcome):
    said = []
    for n, text in sorted(outcome.changed.items()):
        said.append('    %5d - %s' % (n + 1, lines[n].strip()))
        if text.strip():
            said.append('          + %s' % text.strip())
    return '\n'.join(said)


def say(lines, o):
    place = '%s:%d' % (o.section, o.number)
    print('%-11s %s:%d %s  %s  %s' % (place, HEADER, o.mutant.line + 1, o.mutant.function,
                                      o.mutant.kind, '(%.0f s)' % o.seconds))
    print(describe(lines, o))
    verdict = 'SURVIVED' if o.verdict == 'survived' else o.verdict
    print('      %s %s' % (verdict, ('by ' if o.verdict == 'killed' else '') + o.by), flush=True)


def report(lines, outcomes):
    survivors = [o for o in outcomes if o.verdict == 'survived']
    if survivors:
        print('\nSurvivors:')
    for o in survivors:
        say(lines, o)
    print()
    for section in list(dict.fromkeys(o.section for o in outcomes)) + ['all']:
        of = [o.verdict for o in outcomes if section in (o.section, 'all')]
        killed = of.count('killed')
        count = killed + of.count('survived')
        print('%-8s %4d mutants, %4d noticed, %5.1f %%' % (section, count, killed,
                                                         100 * killed / count if count else 0))


def read_mutants(lines):
    return all_mutants(lines, sections(lines), self_checks(lines))


def run(laboratory, wanted, mutants, outcomes):
    """Judges mutants, in each section in turn, until there are as many as wanted."""
    tree = laboratory.tree
    names = wanted.sections.split()
    again = {tuple(word.split(':')) for word in wanted.mutants.split()}
    if again:
        names = [name for name in dict.fromkeys(laboratory.names) if name in dict(again)]
    streams = {name: enumerate(draws(tree, name, wanted.seed, mutants[name])) for name in names}
    count = len(again) or wanted.count
    while sum(o.verdict in ('killed', 'survived') for o in outcomes) < count and streams:
        for name in list(streams):
            outcome = judge_next(laboratory, wanted, again, name, streams)
            if outcome:
                outcomes.append(outcome)


def judge_next(laboratory, wanted, again, name, streams):
    """The next mutant of a section that counts; None, and no stream, when there is none."""
    for number, (mutant, changed) in streams[name]:
        if number < wanted.first or again and (name, str(number)) not in again:
            continue
        began = time.monotonic()
        verdict, by = laboratory.judge(name, changed)
        outcome = Outcome(name, number, mutant, changed, verdict, by, time.monotonic() - began)
        if verdict != 'invalid' or again:
            say(laboratory.lines, outcome)
        if verdict in ('killed', 'survived'):
            return outcome
    del streams[name]
    return None


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument('--count', type=int, default=200)
    arguments.add_argument('--seed', default='1')
    arguments.add_argument('--from', dest='first', type=int, default=0, metavar='NUMBER')
    arguments.add_argument('--sections', default=SECTIONS)
    arguments.add_argument('--mutants', default='')
    arguments.add_argument('--full', action='store_true')
    arguments.add_argument('--jobs', type=int, default=1)
    arguments.add_argument('--list', action='store_true')
    wanted = arguments.parse_args()
    with open(HEADER) as file:
        mutants = read_mutants(file.read().splitlines())
    if wanted.list:
        for name, kinds in mutants.items():
            print('%-10s %5d' % (name, sum(len(kind) for kind in kinds.values())))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    laboratory = Laboratory(Tree(), wanted.jobs, wanted.full)
    outcomes = []
    try:
        run(laboratory, wanted, mutants, outcomes)
    finally:  # also of a run that was ended
        report(laboratory.lines, outcomes)
    return 0


if __name__ == '__main__':
    sys.exit(main())
