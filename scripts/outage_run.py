"""The work of scripts/outage-run: servers that freeze and die while votes are counted."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
OUTAGE_SECONDS = int(os.environ.get("OUTAGE_SECONDS", "30"))
VOTERS = int(os.environ.get("VOTERS", "60000"))
RATE = os.environ.get("RATE", "200")
OUTAGES = os.environ.get("OUTAGES", "Kafka:STOP,Kafka:KILL,Postgres:STOP,Postgres:KILL").split(",")
BEFORE_SECONDS = 6  # votes are cast for so long before each outage
RESUME_SECONDS = 90
COUNT_SECONDS = 240
HTTP_SECONDS_MAX = 2.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """A check that did not hold, as a sentence for the reader."""


def until(seconds, what, probe):
    """Repeats `probe` until it gives something true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.2)
    raise Failure(f"{what} did not happen within {seconds} s")


def free_ports(count):
    """So many ports in a row that nobody has."""
    while True:
        base, held = random.randrange(20000, 32000), []
        try:
            for port in range(base, base + count):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return base
        except OSError:
            pass
        finally:
            for taken in held:
                taken.close()


def tree(pid):
    """A process and its descendants."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                children.setdefault(int(file.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
        except OSError:
            pass  # it has ended meanwhile
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Server:
    """A Kafka or a Postgres of our own."""

    def __init__(self, name, script, directory, port, pid_file):
        self.name, self.script, self.directory, self.port = name, os.path.join(HERE, script), directory, str(port)
        self.pid_file = os.path.join(directory, pid_file)
        os.makedirs(directory, exist_ok=True)
        self.address = self.start()

    def start(self):
        for _ in range(5):
            run = subprocess.run([self.script, "start", self.directory, self.port], capture_output=True, text=True)
            if run.returncode == 0:
                return run.stdout.strip()
            time.sleep(2)  # what a killed one held may take a moment to be free
        raise Failure(f"{self.name} did not start: {run.stderr[-500:]}")

    def pids(self):
        with open(self.pid_file) as file:
            return tree(int(file.readline()))

    def stop(self):
        subprocess.run([self.script, "stop", self.directory], capture_output=True, check=False)


class Engine:
    """A running `tally run`."""

    def __init__(self, tally, directory):
        self.log = os.path.join(directory, "engine.log")
        self.process = subprocess.Popen(tally + ["run", "--listen", "127.0.0.1:0"], cwd=directory,
                                        stdout=open(self.log, "wb"), stderr=subprocess.STDOUT)
        self.url = until(60, "the engine's start", self.find_url)

    def find_url(self):
        self.check_alive()
        with open(self.log, errors="replace") as file:
            found = re.search(r"dashboard\W+(http://[^\s/]+)", file.read())
        return found and found[1]

    def check_alive(self):
        if self.process.poll() is not None:
            with open(self.log, errors="replace") as file:
                raise Failure(f"the engine ended with exit code {self.process.returncode}: {file.read()[-2000:]}")

    def get(self, path):
        """The answer's code and JSON, and how long it took."""
        self.check_alive()
        begun = time.monotonic()
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as response:
                code, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            code, body = error.code, error.read()
        except OSError as error:
            return 0, {"error": str(error)}, time.monotonic() - begun
        try:
            return code, json.loads(body), time.monotonic() - begun
        except ValueError:
            return code, {}, time.monotonic() - begun

    def source(self):
        _, status, _ = self.get("/api/status")
        return (status.get("sources") or [{"received": 0, "counted": 0, "rejected": 0, "lag": 0}])[0]

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def rss_mb(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


class Voters:
    """`tally vote`, started again when an outage ends it: it goes on where it was."""

    def __init__(self, tally, directory):
        self.command, self.directory, self.rate = tally + ["vote", "--faulty", "0.05"], directory, RATE
        self.starts, self.done, self.stopped = 0, False, False
        self.process = None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped and not self.done:
            self.starts, rate = self.starts + 1, self.rate
            with open(os.path.join(self.directory, "vote.log"), "ab") as log:
                self.process = subprocess.Popen(self.command + ["--rate", rate], stdout=log, stderr=log)
                self.done = self.process.wait() == 0 and rate == "0"
            time.sleep(1)

    def hurry(self):
        """The rest as fast as it goes; a run that is ended by a signal leaves nothing half done."""
        self.rate = "0"
        self.process.terminate()
        until(COUNT_SECONDS, "the last vote", lambda: self.done)


def outage(engine, server, how):
    """One outage; what was seen of it."""
    time.sleep(BEFORE_SECONDS)
    pids, received = server.pids(), engine.source()["received"]
    cpu, begun = engine.cpu_seconds(), time.monotonic()
    signal_all(pids, signal.SIGSTOP if how == "STOP" else signal.SIGKILL)
    slowest, paused, unready = 0.0, None, False
    while time.monotonic() - begun < OUTAGE_SECONDS:
        code, status, took = engine.get("/api/status")
        slowest = max(slowest, took)
        if code != 200 or took > HTTP_SECONDS_MAX:
            raise Failure(f"{server.name} {how}: HTTP answered {code} after {took:.1f} s: {status}")
        for pause in status.get("paused", []):
            paused = paused or (time.monotonic() - begun, pause["what"])
        unready |= engine.get("/readyz")[0] == 503
        time.sleep(0.5)
    cpu = engine.cpu_seconds() - cpu
    signal_all(pids, signal.SIGCONT) if how == "STOP" else server.start()
    ended, then = time.monotonic(), engine.source()["received"]
    going = lambda: engine.source()["received"] > then and not engine.get("/api/status")[1].get("paused")
    until(RESUME_SECONDS, f"going on after {server.name} {how} (VOTERS must last as long)", going)
    if server.name == "Kafka" and (paused is None or not unready):
        raise Failure(f"{server.name} {how}: status said paused {paused}, readyz 503: {unready}")
    return {
        "outage": f"{server.name}, kill -{how}, {OUTAGE_SECONDS} s",
        "said paused": f"after {paused[0]:.1f} s: {paused[1]}" if paused else "no: nothing was asked of it",
        "readyz": "503" if unready else "200",
        "HTTP": f"<= {slowest * 1000:.0f} ms",
        "CPU": f"{cpu:.1f} s",
        "went on": f"{time.monotonic() - ended:.1f} s after",
        "RSS": f"{engine.rss_mb()} MB",
        "received": f"{received} -> {then}",
    }


def psql(url, query):
    rows = subprocess.run(["psql", "-X", "-At", url, "-c", query], capture_output=True, text=True, check=True).stdout
    return [row.split("|") for row in rows.splitlines()]


def compare(engine, url):
    """The totals of Postgres and of the engine."""
    truth = {candidate: int(votes) for candidate, votes in
             psql(url, "SELECT candidate_id, count(*) FROM votes GROUP BY 1")}

    def equal():
        source, release = engine.source(), engine.get("/api/status")[1].get("release", {})
        counted = source["lag"] == 0 and source["counted"] == sum(truth.values())
        return counted and release.get("unreleased_rows") == 0 and source
    source = until(COUNT_SECONDS, f"counting {sum(truth.values())} votes (now {engine.source()})", equal)
    if source["received"] != source["counted"] + source["rejected"]:
        raise Failure(f"received is not counted + rejected: {source}")
    rows = engine.get("/api/views/votes_per_candidate")[1]["rows"]
    served = {row["candidate_id"]: row["total_votes"] for row in rows if row["total_votes"]}
    if served != truth:
        raise Failure(f"Postgres has {truth}, the view {served}")
    return truth, source


def print_table(rows):
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for cells in [names, ["-" * width for width in widths], *([row[name] for name in names] for row in rows)]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |")


def run(binary, directory):
    kafka_dir = os.path.join(directory, "kafka")
    os.makedirs(kafka_dir)
    if os.environ.get("KAFKA_LIB"):
        os.symlink(os.environ["KAFKA_LIB"], os.path.join(kafka_dir, "lib"))
    servers, voters, engine = [], None, None
    try:
        servers.append(Server("Kafka", "real-kafka", kafka_dir, free_ports(3), "pid"))
        servers.append(Server("Postgres", "real-postgres", os.path.join(directory, "postgres"), free_ports(1),
                              "data/postmaster.pid"))
        kafka, postgres = servers
        tally = [binary, "--config", os.path.join(directory, "tally.toml")]
        with open(tally[2], "w") as file:
            file.write(f'postgres_url = "{postgres.address}"\n[kafka]\nbootstrap.servers = "{kafka.address}"\n')
        for command in (["topics"], ["seed", "--voters", str(VOTERS)]):
            subprocess.run(tally + command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        engine = Engine(tally, directory)
        until(60, "readiness", lambda: engine.get("/readyz")[0] == 200)
        pid = engine.process.pid
        voters = Voters(tally, directory)
        until(60, "the first vote", lambda: engine.source()["received"] > 0)
        named = {server.name: server for server in servers}
        rows = [outage(engine, named[name], how) for name, how in (one.split(":") for one in OUTAGES)]
        voters.hurry()
        truth, source = compare(engine, postgres.address)
        engine.check_alive()
        print_table(rows)
        print(f"\nPostgres and the engine agree: {sum(truth.values())} votes, {sorted(truth.values())} by candidate; "
              f"received {source['received']} = counted {source['counted']} + rejected {source['rejected']}; "
              f"the engine is still process {pid}; `tally vote` was started {voters.starts} times")
    finally:
        if voters:
            voters.stopped = True
            if voters.process and voters.process.poll() is None:
                voters.process.terminate()
            voters.thread.join(timeout=20)
        if engine and engine.process.poll() is None:
            engine.process.terminate()
            try:
                engine.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                engine.process.kill()
        for server in servers:
            try:
                signal_all(server.pids(), signal.SIGCONT)
            except OSError:
                pass  # it is not there
            server.stop()


def main():
    directory = tempfile.mkdtemp(prefix="tally-outage-")
    os.chmod(directory, 0o755)  # Postgres's account must be able to enter
    try:
        run(sys.argv[1], directory)
    except Failure as failure:
        print(f"outage-run: {failure}", file=sys.stderr)
        for name in ("engine.log", "vote.log"):
            path = os.path.join(directory, name)
            if os.path.exists(path):
                with open(path, errors="replace") as file:
                    print(f"--- the end of {name}\n{file.read()[-6000:]}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
