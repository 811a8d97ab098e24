"""The suites of `make test`, built from a copy of the sources and with other flags."""
import atexit
import hashlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections import namedtuple

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..'))
BUILD = os.path.join(ROOT, os.environ.get('REVDIAL_BUILD', 'build'))
COPIED = ['Makefile', 'revdial.h', 'revdial_tls.h', 'tests', 'examples']
HEADER = 'revdial.h'

# What make compiles and how. `impl` is the object that a suite links with, or None: then the suite
# compiles the implementation itself.
Unit = namedtuple('Unit', 'name source flags impl')
Result = namedtuple('Result', 'verdict seconds')

# What a run may take from the machine, whatever it does. The suites themselves stay far below.
LIMITS = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 1 << 28),
          (resource.RLIMIT_AS, 16 << 30)]


def sections(lines):
    """The name of each line's section, from the banners; None in the public half."""
    name, names = None, []
    for line in lines:
        if line.startswith('// MARK: '):
            where = line.split()[2]
            name = where[5:] if where.startswith('impl.') else None
        names.append(name)
    return names


def self_checks(lines):
    """The lines that are compiled with REVDIAL_SELF_CHECK only, from 0."""
    inside, found = False, set()
    for n, line in enumerate(lines):
        if line.startswith('#ifdef REVDIAL_SELF_CHECK'):
            inside = True
        if inside:
            found.add(n)
        if line.startswith(('#endif', '#else')):
            inside = False
    return found


class Tree:
    """A copy of the sources, which goes at exit, and the commands that build suites from it."""

    def __init__(self):
        self.scratch = os.path.join(BUILD, 'cover')
        os.makedirs(self.scratch, exist_ok=True)
        self.path = tempfile.mkdtemp(prefix='tree-', dir=self.scratch)
        atexit.register(shutil.rmtree, self.path, ignore_errors=True)
        for name in COPIED:
            source = os.path.join(ROOT, name)
            copy = shutil.copytree if os.path.isdir(source) else shutil.copy
            copy(source, os.path.join(self.path, name))
        with open(os.path.join(self.path, HEADER)) as file:
            self.lines = file.read().splitlines()
        self.units, self.suites = {}, []
        self.ask_make()
        self.key = self.digest()

    def digest(self):
        """Changes with whatever could change a result."""
        sha = hashlib.sha256(repr((self.compiler, sorted(self.units.items()))).encode())
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            for name in sorted(files):
                if name.endswith(('.c', '.h')):
                    with open(os.path.join(folder, name), 'rb') as file:
                        sha.update(name.encode() + file.read())
        return sha.hexdigest()

    def ask_make(self):
        """Reads from `make -n` what it would compile, and has it write the two derived headers."""
        make = ['make', '--no-print-directory', 'TLS=no', 'CCACHE=', 'BUILD=out', 'CFLAGS=',
                'CC=' + os.environ.get('CC', 'cc')]
        env = {k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'CI')}
        said = subprocess.run(make + ['-n', '-B', 'suites'], cwd=self.path, env=env, check=True,
                              stdout=subprocess.PIPE, text=True).stdout
        subprocess.run(make + ['out/open/revdial.h', 'out/hollow/revdial.h'], cwd=self.path,
                       env=env, check=True, stdout=subprocess.DEVNULL)
        for line in said.splitlines():
            words = line.split()
            if '-MMD' in words and '-o' in words:
                self.add(shlex.split(line))
        if not self.suites:
            raise SystemExit('make -n suites names no suite')

    def add(self, words):
        self.compiler = words[:next(i for i, w in enumerate(words) if w.startswith('-'))]
        flags, source, impl, skip = [], None, None, False
        name = os.path.basename(words[words.index('-o') + 1])
        for before, word in zip(words[len(self.compiler) - 1:], words[len(self.compiler):]):
            if word in ('-MMD', '-MP', '-MF', '-MT', '-c', '-o', '-x') or \
                    before in ('-MF', '-MT', '-o', '-x'):
                continue
            if word.endswith('.o'):
                impl = os.path.basename(word)
            elif re.search(r'\.[ch]$', word):
                source = word
            else:
                flags.append(word)
        self.units[name] = Unit(name, source, flags, impl)
        if not name.endswith('.o'):
            self.suites.append(name)

    def compile(self, name, target, extra):
        """Compiles one unit to an object; returns what the compiler says, None if it succeeds."""
        unit = self.units[name]
        os.makedirs(os.path.dirname(target), exist_ok=True)
        done = subprocess.run(self.compiler + unit.flags + extra
                              + ['-c', '-o', target, '-x', 'c', unit.source], cwd=self.path,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return done.stderr if done.returncode else None

    def link(self, objects, target, extra):
        subprocess.run(self.compiler + extra + ['-o', target] + objects + ['-pthread'],
                       cwd=self.path, check=True)

    def own_object(self, name):
        """The object of a suite that does not contain the implementation; compiled once."""
        target = os.path.join(self.scratch, 'suites', self.key[:16], name + '.o')
        if not os.path.exists(target):
            failed = self.compile(name, target + '.new', ['-O0', '-w'])
            if failed:
                raise SystemExit(failed)
            os.rename(target + '.new', target)
        return target

    def run(self, program, limit, env=None, stop=None):
        """Runs a suite: 'passed', 'failed', 'hangs', or 'stopped' by the event `stop`."""
        began = time.monotonic()
        with open(program + '.log', 'w+b') as log:
            child = subprocess.Popen([program], cwd=self.path, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=log, start_new_session=True, preexec_fn=bound,
                                     env=dict(os.environ, **(env or {})))
            try:
                verdict = watch(child, limit, stop)
            finally:
                end(child)
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 200))
            tail = log.read().decode(errors='replace').strip().splitlines()[-1:] or ['']
        if not verdict:
            fine = child.returncode == 0 and re.fullmatch(r'[1-9]\d* passed, 0 failed', tail[0])
            verdict = 'passed' if fine else 'failed'
        return Result(verdict, time.monotonic() - began)


def watch(child, limit, stop):
    """Waits for a run; returns why it has to be ended, or None."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        try:
            child.wait(0.05)
            return None
        except subprocess.TimeoutExpired:
            if stop and stop.is_set():
                return 'stopped'
    return 'hangs'


def bound():
    for what, most in LIMITS:
        resource.setrlimit(what, (most, most))


def end(child):
    """Ends a run and what it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
