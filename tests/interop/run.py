#!/usr/bin/env python3
"""revdial against other yamux libraries: as the proxy of their backend and as the backend of their
proxy, on the raw carrier and on WebSockets of a library of their language.

    tests/interop/run.py [OPTION...] [LIBRARY...]       default: all of libraries.py

  --jobs 'bulk streams'   some jobs of jobs.py only; spec is what tests/yamuxspec finds
  --spec                  that, too, with the libraries whose deviations are known
  --spec-of 'go-yamux-5'  the same, of these libraries only
  --table                 print the rows of these libraries in tests/vectors/README.md

Wants revdial-proxy and revdial-agent in the build directory (make interop). Prints a line for each
job, and 'N passed, N failed' at the end; the last check is that table. Leaves nothing running.
"""
import argparse
import os
import signal
import sys
import time
import types

sys.dont_write_bytecode = True  # nothing is written beside the sources

from jobs import JOBS  # noqa: E402
from libraries import BUILD, LIBRARIES, MEANS  # noqa: E402
from link import PATIENCE, Fault, Link, Silent  # noqa: E402
from wire import LOCAL  # noqa: E402
from yamuxspec import QUIET, cells_played, deviations  # noqa: E402

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'vectors', 'README.md')


class Run:
    def __init__(self, wanted, has_spec, spec_of):
        self.wanted, self.has_spec, self.spec_of = wanted, has_spec, spec_of
        self.passed = self.failed = 0
        self.seen = {}  # library to its deviations that mean something to a user

    def check(self, name, is_fine, text):
        self.passed, self.failed = self.passed + is_fine, self.failed + (not is_fine)
        print('%-4s %s: %s' % ('ok' if is_fine else 'FAIL', name, text), flush=True)

    def note(self, library, job, outcomes):
        seen = self.seen.setdefault(library.name, set())
        seen.update((job, outcome) for outcome in outcomes)

    def job(self, job, link):
        """Does a job, and compares what happened with what is known of the library."""
        library, role = link.library, link.role
        want = library.expects(role, link.carrier, job.__name__)
        link.patience = PATIENCE if want == 'ok' else QUIET
        began = time.monotonic()
        try:
            got = job(link) or 'ok'
        except (Fault, Silent) as why:
            got = str(why)
        is_fine = got in want.split('|')
        self.note(library, job.__name__, want.split('|') if is_fine else [got])
        text = '%s, %d ms' % (got, (time.monotonic() - began) * 1000)
        if not is_fine:
            text += '  (known: %s)' % want
        name = '%s, their %s, %s: %s' % (library.title, role, link.carrier, job.__name__)
        self.check(name, is_fine, text)

    def links(self, library, role, carrier):
        for options, jobs in JOBS:
            jobs = [j for j in jobs if not self.wanted or j.__name__ in self.wanted]
            if not jobs:
                continue
            try:
                with Link(library, role, carrier, **options) as link:
                    for job in jobs:
                        self.job(job, link)
            except (Fault, Silent, OSError) as why:
                name = '%s, their %s, %s' % (library.title, role, carrier)
                self.check(name, False, 'no session: %s' % why)

    def our_spec(self, carrier):
        programs = os.path.dirname(BUILD)
        scheme = {'raw': 'http', 'ws': 'ws'}[carrier]
        self.spec('revdial', None, 'backend', carrier, [
            os.path.join(programs, 'revdial-agent'), '--server', scheme + '://{server}',
            '--name', 'peer', '--target', '{target}'])
        self.spec('revdial', None, 'proxy', carrier, [
            os.path.join(programs, 'revdial-proxy'), '--listen', LOCAL + ':0',
            '--expose', LOCAL + ':0=peer'])

    def their_spec(self, library, role, carrier):
        scheme = {'raw': 'http', 'ws': 'ws'}[carrier]
        words = {'backend': ['backend', scheme + '://{server}/revdial', '{target}'],
                 'proxy': ['proxy', scheme]}[role]
        self.spec(library.title, library.name, role, carrier, library.command + words)

    def spec(self, title, name, role, carrier, command):
        """The cells of tests/yamuxspec as one check; those that are not as known are printed."""
        args = types.SimpleNamespace(role=role, peer=name, bare=False, only=None, command=command,
                                     carrier=carrier, log=os.path.join(BUILD, 'spec.log'))
        bad, cells, others = 0, 0, 0
        began = time.monotonic()
        try:
            for _, _, is_fine, line in cells_played(args):
                cells += 1
                others += '(' in line
                bad += not is_fine
                if not is_fine:
                    print(line)
        except (Silent, OSError) as why:
            bad += 1
            print('FAIL %s' % why)
        text = '%d cells, %d deviate, %d not as known, %.0f s' % (cells, others, bad,
                                                                  time.monotonic() - began)
        self.check('%s as a %s, %s: yamuxspec' % (title, role, carrier), bad == 0, text)

    def takes_spec(self, library, role):
        if 'spec' in self.wanted or library.name in self.spec_of:
            return True
        return self.has_spec and deviations(library.name, role)

    def library(self, library):
        try:
            library.build()
        except (RuntimeError, OSError) as why:
            self.check(library.title, False, str(why))
            return
        for role in ('backend', 'proxy'):
            for carrier in ('raw', 'ws'):
                self.links(library, role, carrier)
                if self.takes_spec(library, role):
                    self.their_spec(library, role, carrier)

    def row(self, library):
        """The library's row of the table, as far as this run has seen."""
        seen = self.seen.get(library.name, ())
        words = [MEANS[key] for key in MEANS if key in seen]
        if ('fin_theirs', 'EOF') not in seen:
            words.insert(0, 'works')
        return '| %s | %s | %s |' % (library.title, library.language, '; '.join(words))

    def table(self, libraries):
        with open(TABLE) as file:
            lines = file.read().split('\n')
        missing = [self.row(one) for one in libraries if self.row(one) not in lines]
        text = 'as this run found it' if not missing else 'lacks\n' + '\n'.join(missing)
        self.check('the table in tests/vectors/README.md', not missing, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--jobs', default='')
    parser.add_argument('--spec', action='store_true')
    parser.add_argument('--spec-of', default='')
    parser.add_argument('--table', action='store_true')
    parser.add_argument('libraries', nargs='*')
    args = parser.parse_args()
    os.makedirs(BUILD, exist_ok=True)
    run = Run(args.jobs.split(), args.spec, args.spec_of.split())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what runs, too
    if not args.jobs:
        for carrier in ('raw', 'ws'):
            run.our_spec(carrier)
    libraries = [one for one in LIBRARIES if not args.libraries or one.name in args.libraries]
    for library in libraries:
        run.library(library)
    if args.table:
        print('\n'.join(run.row(one) for one in libraries))
    elif not args.jobs:
        run.table(libraries)
    print('%d passed, %d failed' % (run.passed, run.failed))
    return run.failed != 0 or run.passed == 0


if __name__ == '__main__':
    sys.exit(main())
