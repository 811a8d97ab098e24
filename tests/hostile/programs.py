"""The programs as processes that are watched: what they use is read from /proc and /metrics."""
import os
import re
import resource
import signal
import subprocess
import time
import urllib.request

BUILD = os.environ.get("REVDIAL_BUILD", "build")
KIB, MIB = 1 << 10, 1 << 20
# The programs warn of variables that are not theirs.
OTHERS = {k: v for k, v in os.environ.items() if not k.startswith("REVDIAL_")}
TICKS = os.sysconf("SC_CLK_TCK")


def take_all_descriptors():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit


def until(seconds, is_true):
    """Waits for what is_true says. Returns the seconds that it took, None: it did not come."""
    began = time.monotonic()
    while True:
        if is_true():
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.02)


def cpu_of(pid):
    """Seconds of processor time."""
    with open(f"/proc/{pid}/stat") as f:
        words = f.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICKS


class Program:
    """One process. Its log is a file; what it listens on is read from its first lines."""

    def __init__(self, directory, name, program, *options, within=(), environment=None):
        self.name, self.path = name, os.path.join(directory, f"{name}.log")
        self.out = os.path.join(directory, f"{name}.out")
        with open(self.path, "ab") as log, open(self.out, "wb") as out:
            self.process = subprocess.Popen(
                [*within, os.path.abspath(os.path.join(BUILD, program)), "--log-format", "logfmt",
                 *options], stdin=subprocess.DEVNULL, stdout=out, stderr=log,
                env={**OTHERS, **(environment or {})})
        self.pid = self.process.pid

    def listens(self, count, seconds=20):
        """The addresses in the order of the options, once there are so many."""
        if until(seconds, lambda: len(self._listening()) >= count) is None:
            raise RuntimeError(f"{self.name} does not listen: {self.log()[-500:]}")
        return self._listening()

    def _listening(self):
        with open(self.out) as f:
            return re.findall(r"^listening on (\S+)", f.read(), re.M)

    def log(self):
        with open(self.path, errors="replace") as f:
            return f.read()

    def says(self, pattern, seconds=20, times=1):
        if until(seconds, lambda: len(re.findall(pattern, self.log())) >= times) is None:
            raise RuntimeError(f"{self.name} does not say {pattern}: {self.log()[-500:]}")

    def admin(self):
        self.says("event=admin.listening")
        return re.search(r"event=admin.listening.*http://([^/\s\"]*)", self.log()).group(1)

    def _status(self, field):
        with open(f"/proc/{self.pid}/status") as f:
            return int(re.search(rf"^{field}:\s+(\d+)", f.read(), re.M).group(1))

    def memory(self):
        return self._status("VmRSS") * KIB

    def peak(self):
        return self._status("VmHWM") * KIB

    def forget_peak(self):
        with open(f"/proc/{self.pid}/clear_refs", "w") as f:
            f.write("5")

    def threads(self):
        return self._status("Threads")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self):
        return cpu_of(self.pid)

    def is_alive(self):
        return self.process.poll() is None

    def stop(self, seconds=20):
        """As an operator would. Returns the exit status."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return "it did not stop"

    def kill(self):
        self.process.kill()
        self.process.wait()


def metrics(address):
    """Numbers of /metrics, added up over their labels."""
    sums = {}
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as f:
        for line in f.read().decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.split("{")[0]
                sums[name] = sums.get(name, 0) + float(value)
    return sums
