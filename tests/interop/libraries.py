"""The libraries: how each is built, and what it is known to do otherwise. A job that does not end
as it says here fails, in either direction: a fault that has gone is to be seen, too."""
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.abspath(os.path.join(os.environ.get('REVDIAL_BUILD', 'build'), 'interop'))

# What a deviation means to a user, in the words of the table in tests/vectors/README.md.
MEANS = {
    ('reset_theirs', 'EOF'): 'cannot reset a stream',
    ('fin_theirs', 'EOF'): 'reads nothing after its own FIN',
    ('fin_ours', 'hangs'): 'an answer of more than 256 KiB after a FIN hangs',
    ('goaway', 'ends'): 'ends all streams on GoAway 0',
    ('reset_ours', 'EOF'): 'reads a reset as EOF',
    ('kill_ours', 'EOF'): 'reads the loss of a session as EOF',
    ('streams', 'waits'): 'opens at most 256 streams',
    ('slices', 'EOF'): 'loses a frame that arrives in more than 101 reads',
    ('quiet', 'late'): 'accepts a stream only with its first byte',
}


class Library:
    """Title and language are those of the table. known: outcomes by job, which may have a role or a
    carrier with it; 'ok|EOF' is one of these at random."""

    def __init__(self, name, title, language, build, known):
        self.name, self.title, self.language, self.known = name, title, language, known
        self.builder, self.command = build, None

    def build(self):
        if not self.command:
            self.command = self.builder(self.name)

    def expects(self, role, carrier, job):
        for key in ((role, job), (carrier, job), job):
            if key in self.known:
                return self.known[key]
        return 'ok'


def run(*command, **options):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if result.returncode != 0:
        sys.stdout.write(result.stdout.decode('utf-8', 'replace'))
        raise RuntimeError('%s failed' % ' '.join(command))


def copy_of(folder):
    """Sources in the build directory: package managers write beside what they read."""
    place = os.path.join(BUILD, folder)
    shutil.copytree(os.path.join(HERE, folder), place, dirs_exist_ok=True)
    return place


def go(module):
    def build(name):
        program = os.path.join(BUILD, 'relay-' + module)
        run('go', 'build', '-modfile', module + '.mod', '-o', program, '.',
            cwd=os.path.join(HERE, 'go'))
        return [program, name if module == 'go' else 'hashicorp']
    return build


def js(name):
    place = copy_of('js')
    run('npm', 'install', '--no-package-lock', '--no-audit', '--no-fund', cwd=place)
    return ['node', os.path.join(place, 'relay.mjs'), name]


def python(name):
    place = copy_of('py')
    program = os.path.join(place, 'venv', 'bin', 'python')
    run(sys.executable, '-m', 'venv', os.path.join(place, 'venv'))
    run(program, '-m', 'pip', 'install', '-q', '-r', os.path.join(place, 'requirements.txt'))
    return [program, os.path.join(place, 'relay.py'), name]


def rust(name):
    target = os.path.join(BUILD, 'rs')
    run('cargo', 'build', '--quiet', '--release', '--locked', '--target-dir', target,
        cwd=os.path.join(HERE, 'rs'))
    return [os.path.join(target, 'release', 'relay'), name]


# The stream that is one too many is reset, too.
CUT = {'fin_in_frame': 'EOF', 'reset_in_frame': 'ok|EOF'}
RUST_YAMUX = {'goaway': 'ends', 'reset_ours': 'EOF', 'kill_ours': 'EOF', 'quiet': 'late', **CUT,
              ('proxy', 'streams'): 'EOF'}

# What has come of a frame goes on, and what coder/websocket has of a masked one is still masked.
# A reset may come before or after they have read what was there.
GO_CUT = {('backend', 'fin_in_frame'): 'EOF', ('backend', 'reset_in_frame'): 'ok|EOF',
          ('proxy', 'fin_in_frame'): 'EOF|wrong bytes',
          ('proxy', 'reset_in_frame'): 'ok|EOF|wrong bytes'}

LIBRARIES = [
    Library('hashicorp', 'hashicorp/yamux 0.1.2', 'Go', go('go'),
            {'reset_theirs': 'EOF', 'kill_ours': 'EOF', **GO_CUT}),
    Library('frp', 'fatedier/yamux of 2023, the fork in frp', 'Go', go('frp'),
            {'reset_theirs': 'EOF', 'kill_ours': 'EOF', 'fin_theirs': 'EOF', **GO_CUT}),
    Library('go-yamux-4', 'libp2p/go-yamux 4.0.2', 'Go', go('go'), {}),
    Library('go-yamux-5', 'libp2p/go-yamux 5.1.0', 'Go', go('go'), {'goaway': 'ends'}),
    Library('rust-yamux-13', 'libp2p/rust-yamux 0.13.10', 'Rust', rust,
            RUST_YAMUX),
    Library('rust-yamux-14', 'libp2p/rust-yamux 0.14.1', 'Rust', rust, RUST_YAMUX),
    Library('tokio-yamux', 'nervosnetwork/tentacle, its tokio-yamux 0.3.20', 'Rust', rust,
            {'goaway': 'ends', 'fin_ours': 'hangs', 'kill_ours': 'EOF', **CUT}),
    Library('js-yamux', 'ChainSafe/js-libp2p-yamux 7.0.4', 'JavaScript', js,
            {'goaway': 'ends', ('backend', 'quiet'): 'late', ('ws', 'kill_ours'): 'ok|EOF',
             'fin_in_frame': 'ok|EOF', 'reset_in_frame': 'ok|EOF'}),
    Library('py-libp2p', 'libp2p/py-libp2p 0.8.1', 'Python', python,
            {'goaway': 'ends', 'reset_ours': 'EOF', 'kill_ours': 'ok|EOF', 'slices': 'EOF',
             'fin_in_frame': 'ok|EOF', 'reset_in_frame': 'ok|EOF',
             ('ws', 'slices'): 'ok', ('proxy', 'streams'): 'waits'}),
]
