"""The tunnels that the benchmark compares: how each is started, and where its clients connect.

A peer that cannot be had here says why in `missing` and takes no part.
"""
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def free_port():
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise RuntimeError(f"{what} after {seconds} s")
        time.sleep(0.02)


def echoes(port):
    """Does a byte come back through this port?"""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as s:
            s.settimeout(2)
            s.sendall(b"E-")
            return s.recv(1) == b"-"
    except OSError:
        return False


def answers(port):
    """Does a request of HTTP come back with 200 through this port?"""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as s:
            s.settimeout(2)
            s.sendall(b"GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n")
            return s.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def version_of(command, pattern=r"(\d+\.\d+\S*)"):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    found = re.search(pattern, done.stdout)
    return found.group(1) if found else "?"


class Processes:
    """Children, known by their ids; all end with this object."""

    def __init__(self, directory):
        self.directory = os.path.abspath(directory)
        self.children = []
        os.makedirs(self.directory, exist_ok=True)

    def start(self, name, command, **more):
        """In the background; returns the process, its output is in .out_path."""
        path = os.path.join(self.directory, f"{name}-{len(self.children)}")
        with open(path + ".out", "w") as out, open(path + ".log", "w") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                                     start_new_session=True, **more)
        child.out_path = path + ".out"
        child.log_path = path + ".log"
        self.children.append(child)
        return child

    def write(self, name, text):
        """A file for a child to read; returns its path."""
        path = os.path.join(self.directory, name)
        with open(path, "w") as f:
            f.write(text)
        return path

    def said(self, child, pattern, path=None, seconds=10):
        """Waits for a line of the child's output; returns its first group."""
        def look():
            if child.poll() is not None:
                with open(child.log_path) as f:
                    raise RuntimeError(f"ended with {child.returncode}: {f.read()[-300:]}")
            with open(path or child.out_path) as f:
                found = re.search(pattern, f.read())
            return found and found.group(1)
        return wait_for(look, seconds, f"no '{pattern}' in {path or child.out_path}")

    def port_of(self, child):
        return int(self.said(child, r"listening on 127\.0\.0\.1:(\d+)"))

    def end(self):
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self.children = []


class Peer:
    """One tunnel. start() brings it up between clients and the server on `target`; `line` puts a
    link between its two halves: line(port) is a port that leads to `port`. Or the link is between
    two addresses: the half at the clients listens on `near`, and the other half finds it at
    `far`."""
    name = ""
    near = far = "127.0.0.1"
    missing = None
    is_wanted = True
    jobs = "(?!tls|http)"   # how the names of those begin that it takes part in
    connections = 1 << 20   # that it can have at one time
    has_own_credit = False  # a stream's speed over a long link is the tunnel's own affair

    def __init__(self, build):
        self.build = build
        self.port = None
        self.sides = []  # proxy's and agent's process, for memory

    def version(self):
        return ""

    def does(self, job):
        return re.match(self.jobs, job) is not None

    def start(self, run, target, line):
        raise NotImplementedError

    comes_back = staticmethod(echoes)

    def up(self, run, target, line=lambda port: port):
        self.start(run, target, line)
        wait_for(lambda: self.comes_back(self.port), 10, f"{self.name}: nothing comes back")


class Direct(Peer):
    name = "direct"
    jobs = "(?!idle|tls|http-kept)"

    def start(self, run, target, line):
        self.port = line(target)


class Revdial(Peer):
    name = "revdial"
    has_own_credit = True
    agents = 1
    scheme = "http"
    options = ()  # of both programs
    proxy_options = ()
    agent_options = ()

    def version(self):
        return version_of([f"{self.build}/revdial-proxy", "--version"])

    def start(self, run, target, line):
        env = dict(os.environ, REVDIAL_TOKEN="bench-token")
        proxy = run.start("revdial-proxy", [
            f"{self.build}/revdial-proxy", "--listen", f"{self.near}:0", "--expose",
            "127.0.0.1:0=bench", "--io-threads", str(self.agents), *self.proxy_options,
            *self.options], env=env)
        tunnel = line(int(run.said(proxy, rf"listening on {re.escape(self.near)}:(\d+)\n")))
        self.port = int(run.said(proxy, r"listening on 127\.0\.0\.1:(\d+) for"))
        self.sides = [proxy]
        bare = () if self.far == "127.0.0.1" else ("--insecure-cleartext",)
        for i in range(self.agents):
            agent = run.start("revdial-agent", [
                f"{self.build}/revdial-agent", "--server",
                f"{self.scheme}://{self.far}:{tunnel}", "--name", "bench", "--instance",
                f"bench-{i}", "--target", f"127.0.0.1:{target}", *bare, *self.agent_options,
                *self.options], env=env)
            run.said(agent, "(session.up)", agent.log_path)
            self.sides.append(agent)


class RevdialTwo(Revdial):
    """Two agents, whose sessions are on two I/O threads of the proxy."""
    name = "revdial-two"
    jobs = "up|down|ping|touch|mixed"
    agents = 2


class RevdialEarly(Revdial):
    """As the others do: a client's bytes go along before the target has answered."""
    name = "revdial-early"
    jobs = "touch"
    proxy_options = ("--early",)


class RevdialWs(Revdial):
    """The tunnel in WebSocket frames, where a link is what counts."""
    name = "revdial-ws"
    jobs = "deep"
    scheme = "ws"


class RevdialHttp(Revdial):
    """Each request by its Host."""
    name = "revdial-http"
    jobs = "http"
    proxy_options = ("--http", "127.0.0.1:0", "--route", "bench.test=bench")
    comes_back = staticmethod(answers)

    def start(self, run, target, line):
        super().start(run, target, line)
        self.port = int(run.said(self.sides[0], r"listening on 127\.0\.0\.1:(\d+) for --http"))


def certificates(build):
    """The directory of those that the tests use, made if they are not there."""
    where = os.path.abspath(f"{build}/bench/certs")
    if not os.path.exists(where):
        os.makedirs(where + ".new", exist_ok=True)
        subprocess.run(["sh", os.path.join(HERE, "../tls/certs.sh"), where + ".new"], check=True)
        os.rename(where + ".new", where)
    return where


class RevdialTls(Revdial):
    """The tunnel in TLS, by one library or the other."""
    jobs = "tls"
    scheme = "https"
    library = ""

    def __init__(self, build):
        super().__init__(f"{build}/bench/{self.library}")
        if not os.path.exists(f"{self.build}/revdial-agent"):
            self.missing = f"`make TLS={self.library}` fails"
        self.certs = lambda: certificates(build)

    def start(self, run, target, line):
        certs = self.certs()
        self.proxy_options = ("--tls-cert", f"{certs}/server.pem", "--tls-key",
                              f"{certs}/server.key")
        self.agent_options = ("--tls-ca", f"{certs}/ca.pem", "--server-name", "localhost")
        super().start(run, target, line)

    def version(self):
        return version_of([f"{self.build}/revdial-proxy", "--version"], r"((?:mbedTLS|OpenSSL).*)")


class RevdialMbedtls(RevdialTls):
    name = "revdial-mbedtls"
    library = "mbedtls"


class RevdialOpenssl(RevdialTls):
    name = "revdial-openssl"
    library = "openssl"


class RevdialWith(Revdial):
    """The same with other options."""
    name = "revdial-with"

    def __init__(self, build):
        super().__init__(build)
        self.options = os.environ.get("BENCH_WITH", "").split()
        self.is_wanted = bool(self.options)


class RevdialOld(Revdial):
    """Another build of the same, to see what a change has brought."""
    name = "revdial-old"

    def __init__(self, build):
        super().__init__(os.environ.get("BENCH_OLD", ""))
        self.is_wanted = bool(self.build)


HAPROXY = """\
global
    nbthread 1
    maxconn {connections}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{options}listen bench
    bind 127.0.0.1:{port} {bind}
    server next 127.0.0.1:{to} {next}
"""
# As revdial with OpenSSL: AES-128 of TLS 1.3, and a certificate that is verified.
HAPROXY_BIND = "ssl crt {certs}/haproxy.pem ciphersuites TLS_AES_128_GCM_SHA256"
HAPROXY_NEXT = "ssl verify required ca-file {certs}/ca.pem verifyhost localhost"


class Haproxy(Peer):
    """Two plain proxies in a row: the least that a relay through two programs can be."""
    name = "haproxy"
    options = ""  # lines of its section `defaults`

    def __init__(self, build):
        super().__init__(build)
        self.program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
        if not self.program:
            self.missing = "haproxy is not installed"
        # Each takes two descriptors, and it does not start when it cannot have as many.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.connections = min(25000, (limit - 200) // 2)

    def version(self):
        return version_of([self.program, "-v"])

    def start_one(self, run, to, bind="", next=""):
        port = free_port()
        path = run.write(f"haproxy-{port}.cfg", HAPROXY.format(
            port=port, to=to, connections=self.connections, options=self.options, bind=bind,
            next=next))
        self.sides.insert(0, run.start("haproxy", [self.program, "-db", "-f", path]))
        return port

    def start(self, run, target, line):
        self.sides = []
        self.port = self.start_one(run, line(self.start_one(run, target)))


class HaproxySplice(Haproxy):
    """The same, moving bulk data from socket to socket by splice(2) instead of copying it."""
    name = "haproxy-splice"
    jobs = "up|down|mixed"
    options = "    option splice-request\n    option splice-response\n"

    def __init__(self, build):
        super().__init__(build)
        self.connections //= 2  # it counts pipes as well


class HaproxyTls(Haproxy):
    """The same, and TLS between the two: a handshake for each connection."""
    name = "haproxy-tls"
    jobs = "tls"

    def start(self, run, target, line):
        certs = certificates(self.build)
        with open(f"{certs}/haproxy.pem", "w") as out:
            for part in "server.pem", "server.key":
                with open(f"{certs}/{part}") as f:
                    out.write(f.read())
        self.sides = []
        last = self.start_one(run, target, bind=HAPROXY_BIND.format(certs=certs))
        self.port = self.start_one(run, line(last), next=HAPROXY_NEXT.format(certs=certs))


HAPROXY_HTTP = """\
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend bench
    bind 127.0.0.1:{port}
    option forwardfor
    use_backend bench if {{ hdr(host) -i bench.test }}
backend bench
    server next 127.0.0.1:{to}
"""


class HaproxyHttp(Haproxy):
    """The first of the two reads HTTP and goes by Host."""
    name = "haproxy-http"
    jobs = "http"
    comes_back = staticmethod(answers)

    def start(self, run, target, line):
        self.sides = []
        to, self.port = line(self.start_one(run, target)), free_port()
        path = run.write(f"haproxy-{self.port}.cfg", HAPROXY_HTTP.format(
            port=self.port, to=to, connections=self.connections))
        self.sides.insert(0, run.start("haproxy", [self.program, "-db", "-f", path]))


NGINX_HTTP = """\
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path {dir}/nginx.body;
    proxy_temp_path {dir}/nginx.proxy;
    fastcgi_temp_path {dir}/nginx.fastcgi;
    uwsgi_temp_path {dir}/nginx.uwsgi;
    scgi_temp_path {dir}/nginx.scgi;
    upstream next {{
        server 127.0.0.1:{to};
        keepalive {connections};
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        server_name bench.test;
        location / {{
            proxy_pass http://next;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""


class NginxHttp(Haproxy):
    """The same with nginx before the second HAProxy."""
    name = "nginx-http"
    jobs = "http"
    comes_back = staticmethod(answers)

    def __init__(self, build):
        super().__init__(build)
        self.nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if not self.nginx:
            self.missing = "nginx is not installed"

    def version(self):
        return version_of([self.nginx, "-v"])

    def start(self, run, target, line):
        self.sides = []
        to, self.port = line(self.start_one(run, target)), free_port()
        path = run.write(f"nginx-{self.port}.conf", NGINX_HTTP.format(
            dir=run.directory, port=self.port, to=to, connections=2 * self.connections,
            files=2 * self.connections + 200))
        self.sides.insert(0, run.start("nginx", [self.nginx, "-e", "stderr", "-c", path]))


class Yamux(Peer):
    """Go, hashicorp/yamux and io.Copy: what one writes in an afternoon."""
    name = "yamux"
    has_own_credit = True

    def __init__(self, build):
        super().__init__(build)
        self.program = go_build(f"{build}/bench/peer", os.path.join(HERE, "go"), ".")
        if not self.program:
            self.missing = "the Go program does not build here"

    def version(self):
        with open(os.path.join(HERE, "go", "go.mod")) as f:
            return re.search(r"yamux (v\S+)", f.read()).group(1) + ", " + go_version()

    def start(self, run, target, line):
        proxy = run.start("yamux-proxy", [self.program, "proxy", self.near])
        tunnel = line(int(run.said(proxy, rf"listening on {re.escape(self.near)}:(\d+)\n")))
        self.port = int(run.said(proxy, r"listening on 127\.0\.0\.1:(\d+) for"))
        agent = run.start("yamux-agent", [self.program, "agent", f"{self.far}:{tunnel}",
                                          f"127.0.0.1:{target}"])
        self.sides = [proxy, agent]


SSHD = """\
Port {port}
ListenAddress {near}
HostKey {dir}/host
PidFile none
AuthorizedKeysFile {dir}/user.pub
StrictModes no
UsePAM no
PasswordAuthentication no
AllowTcpForwarding yes
UseDNS no
"""


class Ssh(Peer):
    """ssh -R with an sshd and keys of its own."""
    name = "ssh"
    has_own_credit = True

    def __init__(self, build):
        super().__init__(build)
        self.sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
        if not self.sshd or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
            self.missing = "openssh-server and openssh-client are not both installed"

    def version(self):
        return version_of(["ssh", "-V"], r"OpenSSH_(\S+?),? ")

    def start(self, run, target, line):
        where = os.path.join(run.directory, f"ssh-{free_port()}")
        os.makedirs(where)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd wants an empty place
        for key in "host", "user":
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{where}/{key}"],
                           check=True, stdin=subprocess.DEVNULL)
        port, self.port = free_port(), free_port()
        config = run.write(f"sshd-{port}.conf", SSHD.format(port=port, near=self.near,
                                                                   dir=where))
        server = run.start("sshd", [self.sshd, "-D", "-e", "-f", config])
        run.said(server, "(Server listening)", server.log_path)
        client = run.start("ssh", [
            "ssh", "-N", "-F", "none", "-i", f"{where}/user", "-p", str(line(port)),
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{self.port}:127.0.0.1:{target}",
            self.far])
        self.sides = [server, client]


FRPS = """\
bindAddr = "127.0.0.1"
bindPort = {port}
"""
FRPC = """\
serverAddr = "127.0.0.1"
serverPort = {tunnel}
transport.tls.enable = {tls}
[[proxies]]
name = "bench"
type = "tcp"
localIP = "127.0.0.1"
localPort = {target}
remotePort = {exposed}
"""


class Frp(Peer):
    """As it comes, except for its TLS, which is off: of these only ssh encrypts."""
    name = "frp"
    has_own_credit = True
    tls = "false"

    def __init__(self, build):
        super().__init__(build)
        self.server, self.client = built(build, "frps"), built(build, "frpc")
        if not self.server or not self.client:
            self.missing = NOT_BUILT

    def version(self):
        return version_of([self.server, "--version"])

    def start(self, run, target, line):
        port, self.port = free_port(), free_port()
        proxy = run.start("frps", [self.server, "-c", run.write(
            f"frps-{port}.toml", FRPS.format(port=port))])
        run.said(proxy, "(started successfully)")
        agent = run.start("frpc", [self.client, "-c", run.write(f"frpc-{port}.toml", FRPC.format(
            tunnel=line(port), target=target, exposed=self.port, tls=self.tls))])
        self.sides = [proxy, agent]


class FrpTls(Frp):
    """As it comes, TLS included: frpc trusts every certificate."""
    name = "frp-tls"
    jobs = "tls"
    tls = "true"


RATHOLE = """\
[server]
bind_addr = "127.0.0.1:{port}"
default_token = "bench"
[server.services.bench]
bind_addr = "127.0.0.1:{exposed}"
"""
RATHOLE_CLIENT = """\
[client]
remote_addr = "127.0.0.1:{tunnel}"
default_token = "bench"
[client.services.bench]
local_addr = "127.0.0.1:{target}"
"""


class Rathole(Peer):
    """It has a TCP connection of its own for each client, so that nothing is multiplexed."""
    name = "rathole"

    def __init__(self, build):
        super().__init__(build)
        self.program = built(build, "rathole")
        if not self.program:
            self.missing = NOT_BUILT

    def version(self):
        return version_of([self.program, "--version"], r"Build Version:\s*(\S+)")

    def start(self, run, target, line):
        port, self.port = free_port(), free_port()
        proxy = run.start("rathole-proxy", [self.program, "--server", run.write(
            f"rathole-{port}.toml", RATHOLE.format(port=port, exposed=self.port))])
        wait_for(lambda: is_open(port), 10, "rathole: does not listen")
        agent = run.start("rathole-agent", [self.program, "--client", run.write(
            f"rathole-client-{port}.toml",
            RATHOLE_CLIENT.format(tunnel=line(port), target=target))])
        self.sides = [proxy, agent]


NOT_BUILT = "not in build/bench/peers nor on the path (make bench-peers)"


def built(build, name):
    return shutil.which(name, path=f"{build}/bench/peers") or shutil.which(name)


def is_open(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def go_version():
    return version_of(["go", "version"], r"(go\d\S+)")


def go_build(program, directory, package):
    """Returns the program's path, or None."""
    if not shutil.which("go"):
        return None
    try:
        subprocess.run(["go", "build", "-o", os.path.abspath(program), package], cwd=directory,
                       check=True, timeout=240, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError):
        return None
    return os.path.abspath(program)


ALL = [Direct, Revdial, RevdialTwo, RevdialEarly, RevdialWs, RevdialHttp, RevdialWith, RevdialOld,
       Haproxy, HaproxySplice, HaproxyHttp, NginxHttp, Yamux, Ssh, Frp, Rathole, RevdialMbedtls,
       RevdialOpenssl, HaproxyTls, FrpTls]
