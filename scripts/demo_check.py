"""The checks of scripts/demo-check: the demo's totals as served, as stored and as published are the same."""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

START_SECONDS = 180  # a first run may have to download Postgres
COUNT_SECONDS = 120
STABLE_SECONDS = 2
STOP_SECONDS = 10
ARGUMENTS = "demo --voters 1000 --rate 0 --seed 7 --listen 127.0.0.1:0 --faulty 0.05".split()
TOKEN = "demo-check"
PLACES = {
    "dashboard": r"dashboard\W+(http://[^\s/]+)",
    "kafka": r"kafka\W+([\w.\-]+:\d+)",
    "postgres": r"postgres\W+(postgres(?:ql)?://\S+)",
}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Failure(Exception):
    """A check that did not hold, as a sentence for the reader."""


def until(seconds, what, probe):
    """Repeats `probe` until it gives something true; its last excuse is part of the failure."""
    deadline, excuse = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            found = probe()
            if found:
                return found
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            excuse = f" ({error})"
        time.sleep(0.2)
    raise Failure(f"{what} did not happen within {seconds} s{excuse}")


def fetch(url, token=None):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def progress(status, name):
    """`received`, `counted`, `rejected` or `lag`, over all sources."""
    return sum(int(source[name]) for source in status["sources"])


class Demo:
    """A running `tally demo`, started from a directory that has none of the repository's files."""

    def __init__(self, binary, directory):
        self.log = os.path.join(directory, "stdout")
        self.errors = os.path.join(directory, "stderr")
        with open(self.log, "wb") as out, open(self.errors, "wb") as err:
            self.process = subprocess.Popen([binary, *ARGUMENTS, "--token", TOKEN], cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def said(self, path):
        with open(path, errors="replace") as file:
            return ANSI.sub("", file.read())

    def places(self):
        def probe():
            if self.process.poll() is not None:
                raise Failure(f"the demo ended with exit code {self.process.returncode} before it was ready: {self.said(self.errors)[-2000:]}")
            found = {name: re.search(pattern, self.said(self.log), re.I) for name, pattern in PLACES.items()}
            return {name: match[1] for name, match in found.items()} if all(found.values()) else None

        return until(START_SECONDS, "printing the addresses of dashboard, kafka and postgres", probe)

    def descendants(self):
        children = {}
        for path in glob.glob("/proc/[0-9]*/stat"):
            try:
                with open(path) as file:
                    text = file.read()
            except OSError:
                continue
            pid, parent = int(text.split()[0]), int(text.rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(pid)
        found, todo = set(), [self.process.pid]
        while todo:
            for child in children.get(todo.pop(), []):
                found.add(child)
                todo.append(child)
        return found

    def stop(self):
        before = self.descendants()
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(f"the demo did not stop within {STOP_SECONDS} s of SIGTERM") from None
        if code != 0:
            raise Failure(f"the demo ended with exit code {code} after SIGTERM: {self.said(self.errors)[-2000:]}")
        left = [pid for pid in before if os.path.exists(f"/proc/{pid}")]
        if left:
            raise Failure(f"processes are left after the demo stopped: {left}")
        return time.monotonic() - began


def query(url, sql):
    """Rows of Postgres, as lists of text."""
    output = subprocess.run(["psql", "-X", "-q", "-At", "-F", "\t", "-d", url, "-c", sql], capture_output=True, text=True, timeout=30)
    if output.returncode != 0:
        raise OSError(output.stderr.strip())
    return [line.split("\t") for line in output.stdout.splitlines()]


def published(kafka, topic, value):
    """The topic's last value per key, as a materialized reader would have it; a tombstone removes its key."""
    command = ["kcat", "-C", "-q", "-e", "-Z", "-b", kafka, "-t", topic, "-o", "beginning", "-f", "%p\t%o\t%k\t%s\n"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if output.returncode != 0:
        raise Failure(f"kcat could not read {topic}: {output.stderr.strip()}")
    totals = {}
    for line in output.stdout.splitlines():
        _, _, key, message = line.split("\t", 3)
        if message in ("", "NULL"):
            totals.pop(key, None)
        else:
            totals[key] = int(json.loads(message)[value])
    return totals


def served(dashboard, view, key, value, token=None):
    """What everybody is told, or with the token the operator."""
    answer = fetch(f"{dashboard}/api/views/{view}", token)
    if answer.get("total_rows", len(answer["rows"])) != len(answer["rows"]):
        answer = fetch(f"{dashboard}/api/views/{view}?limit={answer['total_rows']}", token)
    return {row[key]: int(row[value]) for row in answer["rows"]}


def settled(dashboard, postgres):
    """The status once every vote is in: ready, no lag, and the count unchanged and equal to Postgres's."""
    seen = {"count": None, "since": 0.0}

    def probe():
        status = fetch(f"{dashboard}/api/status")
        counted, stored = progress(status, "counted"), int(query(postgres, "SELECT count(*) FROM votes")[0][0])
        lag = progress(status, "lag")
        state = (counted, progress(status, "received"), stored)
        if state != seen["count"]:
            seen["count"], seen["since"] = state, time.monotonic()
        steady = time.monotonic() - seen["since"] >= STABLE_SECONDS
        unreleased = status["release"]["unreleased_rows"]
        if steady and status["ready"] and lag == 0 and counted == stored > 0 and unreleased == 0:
            return status
        raise ValueError(f"counted {counted}, in Postgres {stored}, lag {lag}, not yet released {unreleased}")

    return until(COUNT_SECONDS, "counting every vote in Postgres", probe)


def compare(title, sources):
    """Prints the totals side by side; they must be the same."""
    keys = sorted(set().union(*(totals for totals in sources.values())))
    width = max([len(key) for key in keys] + [len("total"), len(title)])
    print(f"\n{title:<{width}}" + "".join(f"{name:>12}" for name in sources))
    for key in keys:
        row = [totals.get(key) for totals in sources.values()]
        mark = "" if len(set(row)) == 1 else "   <-- differs"
        print(f"{key:<{width}}" + "".join(f"{'absent' if n is None else n:>12}" for n in row) + mark)
    print(f"{'total':<{width}}" + "".join(f"{sum(totals.values()):>12}" for totals in sources.values()))
    if len({json.dumps(totals, sort_keys=True) for totals in sources.values()}) != 1:
        raise Failure(f"{title}: the totals of {', '.join(sources)} differ, see the table above")
    if not keys:
        raise Failure(f"{title}: there is nothing to compare")


def check_totals(places):
    dashboard, kafka, postgres = places["dashboard"], places["kafka"], places["postgres"]
    status = settled(dashboard, postgres)
    compare("votes_per_candidate", {
        "http": served(dashboard, "votes_per_candidate", "candidate_id", "total_votes"),
        # A candidate without votes is in the view, too.
        "postgres": {k: int(n) for k, n in query(postgres, "SELECT c.candidate_id, count(v.voter_id) FROM candidates c LEFT JOIN votes v USING (candidate_id) GROUP BY 1")},
        "kafka": published(kafka, "aggregated_votes_per_candidate", "total_votes"),
    })
    compare("turnout_by_location", {
        "http": served(dashboard, "turnout_by_location", "state", "count", TOKEN),
        "postgres": {k: int(n) for k, n in query(postgres, "SELECT r.address_state, count(v.voter_id) FROM voters r LEFT JOIN votes v USING (voter_id) GROUP BY 1")},
        "kafka": published(kafka, "aggregated_turnout_by_location", "count"),
    })
    received, counted, rejected = (progress(status, name) for name in ("received", "counted", "rejected"))
    print(f"\nreceived {received} = counted {counted} + rejected {rejected}")
    if received != counted + rejected:
        raise Failure(f"received {received} is not counted {counted} + rejected {rejected}")
    if rejected == 0:
        raise Failure("no vote was rejected, although one in twenty was faulty")


def temporary():
    """What tally has in the temporary directory; a downloaded Postgres is meant to stay."""
    return {path for path in os.listdir(tempfile.gettempdir()) if "tally" in path and not path.startswith("tally-cache-")}


def main(binary):
    with tempfile.TemporaryDirectory(prefix="demo-check-") as directory:
        before = temporary()
        demo = Demo(binary, directory)
        try:
            check_totals(demo.places())
            seconds = demo.stop()
            left = temporary() - before
            if left:
                raise Failure(f"the demo left in {tempfile.gettempdir()}: {', '.join(sorted(left))}")
            print(f"stopped in {seconds:.1f} s, nothing left behind\ndemo-check: all totals agree")
        except Failure as failure:
            print(f"demo-check: {failure}", file=sys.stderr)
            return 1
        finally:
            if demo.process.poll() is None:
                demo.process.kill()
                demo.process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
