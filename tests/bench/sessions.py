#!/usr/bin/env python3
"""What sessions cost a proxy, measured, and what many of them need, computed from it.

    REVDIAL_BUILD=build python3 tests/bench/sessions.py [SESSIONS]

Starts revdial-proxy, has so many agents (1000) register by Bearer, Digest, and certificates over
TLS, then as many again, and reads from /proc what the proxy has used for these: processor time of a
handshake, whatever the client needs for it, and memory of a session that stays idle. Then a table
of proxies and agents.
"""
import asyncio
import hashlib
import os
import re
import resource
import ssl
import subprocess
import sys
import tempfile

BUILD = os.environ.get("REVDIAL_BUILD", "build")
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
AT_ONCE = 32
DNS_HEAD, DNS_RECORD = 12 + 40, 16  # bytes: header and question; an A record with a compressed name


# ---- the proxy

class Proxy:
    def __init__(self, *options):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        self.process = subprocess.Popen(
            [os.path.join(BUILD, "revdial-proxy"), "--listen", "127.0.0.1:0", "--log-level",
             "error", "--keepalive", "30m", "--dead-after", "30m", *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def cpu_us(self):
        total, tasks = 0, f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/schedstat") as f:
                total += int(f.read().split()[0])
        return total / 1000

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) * 1024

    def stop(self):
        self.process.kill()
        self.process.wait()


# ---- agents, as far as the proxy can tell

def request(name, more):
    lines = ("GET /revdial HTTP/1.1", "Host: proxy", "Connection: Upgrade", "Upgrade: revdial",
             f"Revdial-Name: {name}", f"Revdial-Instance: {name}.1", *more, "", "")
    return "\r\n".join(lines).encode()


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def digest(challenge, user, password):
    """RFC 7616, section 3.4."""
    field = dict(re.findall(r'(\w+)="?([^",]+)"?', challenge))
    realm, nonce, cnonce = field["realm"], field["nonce"], os.urandom(16).hex()
    proof = sha256(":".join((sha256(f"{user}:{realm}:{password}"), nonce, "00000001", cnonce,
                             "auth", sha256("GET:/revdial"))))
    return (f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", '
            f'uri="/revdial", algorithm=SHA-256, qop=auth, nc=00000001, cnonce="{cnonce}", '
            f'response="{proof}"')


async def ask(proxy, name, tls, more):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=tls,
                                                   server_hostname="localhost" if tls else None)
    writer.write(request(name, more))
    return (await reader.readuntil(b"\r\n\r\n")).decode(), writer


async def register(proxy, name, way, tls):
    """Digest answers the challenge on a connection of its own."""
    more = ("Authorization: Bearer token",) if way == "bearer" else ()
    answer, writer = await ask(proxy, name, tls, more)
    if way == "digest":
        writer.close()
        challenge = re.search(r"(?i)www-authenticate: digest (.*)", answer).group(1)
        answer, writer = await ask(proxy, name, tls, (digest(challenge, "user", "password"),))
    if " 101 " not in answer:
        sys.exit(f"{way}: {answer}")
    return writer


async def register_all(proxy, group, way, tls):
    free = asyncio.Semaphore(AT_ONCE)

    async def one(i):
        async with free:
            return await register(proxy, f"agent-{group}-{i}", way, tls)
    return await asyncio.gather(*(one(i) for i in range(COUNT)))


async def measure(way, tls, options):
    """What the proxy needs for a handshake, in us, and for an idle session, in bytes."""
    proxy = Proxy(*options)
    try:
        first = await register_all(proxy, "first", way, tls)
        cpu, memory = proxy.cpu_us(), proxy.memory()
        second = await register_all(proxy, "second", way, tls)
        handshake, session = proxy.cpu_us() - cpu, proxy.memory() - memory
        del first, second
        return handshake / COUNT, session / COUNT
    finally:
        proxy.stop()


def kernel_bytes():
    """Of a TCP connection: the objects that the system has for each. None: it does not say."""
    wanted = {"TCP", "sock_inode_cache", "filp", "dentry", "ep_epitem", "eventpoll_epi"}
    try:
        with open("/proc/slabinfo") as f:
            sizes = {line.split()[0]: int(line.split()[3]) for line in f.readlines()[2:]}
    except OSError:
        return None
    return sum(size for name, size in sizes.items() if name in wanted)


# ---- files

def make_certificates(folder):
    subprocess.run(["sh", os.path.join(os.path.dirname(__file__), "..", "tls", "certs.sh"), folder],
                   check=True)


def make_contexts(folder):
    plain = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    mutual = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    mutual.load_cert_chain(f"{folder}/cam.pem", f"{folder}/cam.key")
    return plain, mutual


def write(path, text):
    with open(path, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as f:
        f.write(text)
    return path


# ---- the tables

def report(rows):
    print("| a session by | handshake, us of a core | a second and core | idle, bytes |")
    print("|---|--:|--:|--:|")
    for name, (us, size) in rows:
        print(f"| {name} | {us:.0f} | {1e6 / us:.0f} | {size:.0f} |")
    kernel = kernel_bytes()
    print(f"\nThe system's part of a connection: {kernel or 'not known'} bytes and a descriptor.\n")
    return kernel or 4096


def need(agents, proxies, cost, kernel):
    """One row: a proxy's share, what it needs, and what its loss does to the others."""
    us, size = cost
    share = agents / proxies
    others = proxies - 1
    seconds = share * us / 1e6 / (others or 1)
    gigabytes = share * (size + kernel) / 1e9
    answer = DNS_HEAD + proxies * DNS_RECORD
    return (f"| {agents:,} | {proxies:,} | {share:,.0f} | {gigabytes:.2f} | "
            f"{share / (others or 1):,.0f} | {seconds:.1f} | {answer:,} |")


def compute(cost, kernel):
    print("| agents | proxies | sessions and descriptors at each | memory there, GB | "
          "one is lost: each other gets | s of a core for these | DNS answer, bytes |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for agents, proxies in ((10000, 1), (100000, 1), (100000, 10), (1000000, 1), (1000000, 10),
                            (1000000, 1000)):
        print(need(agents, proxies, cost, kernel))


def main():
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(folder)
        tokens = write(f"{folder}/tokens", "* token\n")
        users = write(f"{folder}/users", "digest * user password\n")
        mtls = write(f"{folder}/mtls", "mtls agent-* DNS:cam-1.cams.test\n")
        plain, mutual = make_contexts(folder)
        served = ("--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key")
        admits = ("--client-ca", f"{folder}/ca.pem", "--auth-file", mtls)
        rows = [(name, asyncio.run(measure(way, tls, options))) for name, way, tls, options in (
            ("Bearer, no TLS", "bearer", None, ("--token-file", tokens)),
            ("Digest, no TLS", "digest", None, ("--auth-file", users)),
            ("Bearer over TLS", "bearer", plain, (*served, "--token-file", tokens)),
            ("certificate (mTLS)", "mtls", mutual, (*served, *admits)))]
    version = subprocess.run([os.path.join(BUILD, "revdial-proxy"), "--version"],
                             capture_output=True, text=True, check=True).stdout.strip()
    print(f"{COUNT} sessions, {version}\n")
    kernel = report(rows)
    print("With certificates over TLS:\n")
    compute(rows[-1][1], kernel)


main()
