"""What scripts/push-load measures: the server's CPU and memory with and without readers of its events."""

import glob
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

CLIENTS = int(os.environ.get("CLIENTS", "5000"))
RELEASES_PER_S = float(os.environ.get("RELEASES_PER_S", "2"))
SECONDS_EACH = float(os.environ.get("SECONDS_EACH", "20"))
VOTES_PER_S = 400
START_SECONDS = 180
TICKS = os.sysconf("SC_CLK_TCK")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def start(binary, directory):
    """The demo's process and address."""
    voters = int((3 * SECONDS_EACH + 120) * VOTES_PER_S)
    command = [binary, "demo", "--voters", str(voters), "--rate", str(VOTES_PER_S), "--listen", "127.0.0.1:0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}
    environment["TALLY_RELEASE_INTERVAL_MS"] = str(int(1000 / RELEASES_PER_S))
    log = os.path.join(directory, "log")
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"push-load: the demo ended: {open(log).read()[-2000:]}")
        with open(log, errors="replace") as file:
            found = re.search(r"dashboard\W+http://([\d.]+):(\d+)", ANSI.sub("", file.read()))
        if found and release(found[1], int(found[2])) > 3:
            return process, found[1], int(found[2])
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    sys.exit("push-load: no release came")


def release(host, port):
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/api/status", timeout=5) as response:
            return json.load(response)["release"]["release"]
    except OSError:
        return 0


def cpu_seconds(pid):
    """Of the threads that serve HTTP, and of all."""
    served, all_of_them = 0.0, 0.0
    for path in glob.glob(f"/proc/{pid}/task/*/stat"):
        try:
            with open(path) as file:
                text = file.read()
        except OSError:
            continue
        name, fields = text[text.index("(") + 1:text.rindex(")")], text.rsplit(")", 1)[1].split()
        seconds = (int(fields[11]) + int(fields[12])) / TICKS
        all_of_them += seconds
        if name == "http":
            served += seconds
    return served, all_of_them


def rss_mb(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Readers:
    """Clients that read all events and keep none."""

    def __init__(self, host, port, number):
        self.poll = select.epoll()
        self.sockets = {}
        self.events, self.bytes = 0, 0
        request = f"GET /api/changes HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        for _ in range(number):
            reader = socket.create_connection((host, port))
            reader.sendall(request)
            reader.setblocking(False)
            self.sockets[reader.fileno()] = reader
            self.poll.register(reader.fileno(), select.EPOLLIN)
            self.read(0)

    def read(self, seconds):
        for fd, _ in self.poll.poll(seconds):
            try:
                received = os.read(fd, 1 << 20)
            except BlockingIOError:
                continue
            if not received:
                sys.exit("push-load: the server closed a connection")
            self.events += received.count(b"event: changes")
            self.bytes += len(received)

    def read_for(self, seconds):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.read(min(left, 0.5))


def measure(process, host, port, readers):
    events, first = readers.events, release(host, port)
    before, begun = cpu_seconds(process.pid), time.monotonic()
    readers.read_for(SECONDS_EACH)
    after, seconds = cpu_seconds(process.pid), time.monotonic() - begun
    releases = release(host, port) - first
    served, everything = [(b - a) / seconds * 100 for a, b in zip(before, after)]
    print(f"{len(readers.sockets):>8} {releases / seconds:>11.2f} {readers.events - events:>9} {served:>12.1f} % {everything:>12.1f} %"
          f" {rss_mb(process.pid):>8.0f} MB", flush=True)
    return served, releases, readers.events - events


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="push-load-") as directory:
        process, host, port = start(sys.argv[1], directory)
        try:
            print(f"{'readers':>8} {'releases/s':>11} {'events':>9} {'http threads':>14} {'all threads':>14} {'memory':>11}")
            measure(process, host, port, Readers(host, port, 0))
            readers = Readers(host, port, CLIENTS)
            readers.read_for(3)  # their snapshots
            _, releases, events = measure(process, host, port, readers)
            if events < 0.95 * releases * CLIENTS:
                sys.exit(f"push-load: {CLIENTS} readers of {releases} releases got {events} events")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


main()
