"""The work of scripts/visitors-load: votes one at a time, with and without the worst visitors."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

CLIENTS = int(os.environ.get("CLIENTS", "50"))
VOTES = int(os.environ.get("VOTES", "150"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SLOWER_MAX = 1.20
START_SECONDS = 180
VOTE_SECONDS = 30
GONE_SECONDS = 1.0
TOKEN = "visitors"
PLACES = {"url": r"dashboard\W+(http://[^\s/]+)", "kafka": r"kafka\W+([\w.\-]+:\d+)"}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TOPIC = "aggregated_votes_per_candidate"
# Computes for ever; doubles its plan until memory ends; lengthens a text until memory ends.
ENDLESS = "select sum(a.value*b.value) from range(1000000) a cross join range(1000000) b"
DOUBLING = (
    "WITH t0 AS (SELECT 1 AS x)"
    + "".join(f", t{n} AS (SELECT * FROM t{n - 1} UNION ALL SELECT * FROM t{n - 1})" for n in range(1, 22))
    + " SELECT COUNT(*) FROM t21"
)
LENGTHENING = "SELECT length(" + "replace(" * 6 + "'xxxxxxxxxxxxxxxx'" + f", 'x', '{'x' * 32}')" * 6 + ")"
WORST = [ENDLESS, DOUBLING, LENGTHENING]


class Failure(Exception):
    """A check that did not hold, as a sentence for the reader."""


def ask(url, query, token=None):
    """Status and body of a query."""
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url}/api/sql", json.dumps({"query": query}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, None


class Demo:
    """A running `tally demo` in which nobody votes."""

    def __init__(self, binary, directory):
        self.log = os.path.join(directory, "stdout")
        needed = 2 * ROUNDS * VOTES + 1000
        arguments = f"demo --voters {needed} --turnout 0 --rate 0 --listen 127.0.0.1:0 --public-sql --token {TOKEN}"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [binary, *arguments.split()], cwd=directory, stdout=log, stderr=subprocess.STDOUT
            )
        self.url, self.kafka = self.places()
        self.until_ready()

    def places(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with open(self.log) as log:
                text = ANSI.sub("", log.read())
            found = [re.search(pattern, text) for pattern in PLACES.values()]
            if all(found):
                return [match.group(1) for match in found]
            time.sleep(0.2)
        raise Failure("the demo did not start: " + open(self.log).read()[-500:])

    def until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise Failure("the demo did not become ready")

    def queries(self):
        """The queries' processes that are there."""
        found = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as command, open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                    found += command.read().startswith(b"tally-sql") and parent == self.process.pid
            except OSError:
                pass  # it has ended meanwhile
        return found

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Votes:
    """Sends votes one at a time and waits until the topic shows each. kcat does not send a line before the next
    one comes, so each vote has a kcat of its own."""

    def __init__(self, demo):
        code, answer = ask(demo.url, "SELECT voter_id FROM voters", TOKEN)
        if code != 200:
            raise Failure(f"the voters can't be read: {code}")
        self.voters = [row["voter_id"] for row in answer["rows"]]
        _, answer = ask(demo.url, "SELECT candidate_id FROM candidates", TOKEN)
        self.candidate = answer["rows"][0]["candidate_id"]
        self.kcat = ["kcat", "-q", "-b", demo.kafka]
        self.counted, self.sent = 0, 0
        self.changed = threading.Condition()
        self.readers = [self.read("votes_topic", self.note_sent), self.read(TOPIC, self.note_counted)]
        time.sleep(3)

    def read(self, topic, note):
        """Gives each new record of a topic, with its timestamp, to `note`."""
        command = [*self.kcat, "-C", "-u", "-o", "end", "-t", topic, "-f", "%T %s\n", "-X", "fetch.wait.max.ms=10"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)

        def follow():
            for line in process.stdout:
                timestamp, value = line.split(b" ", 1)
                with self.changed:
                    note(int(timestamp), json.loads(value))
                    self.changed.notify_all()

        threading.Thread(target=follow, daemon=True).start()
        return process

    def note_sent(self, timestamp_ms, _):
        self.sent = timestamp_ms

    def note_counted(self, _, row):
        if row["candidate_id"] == self.candidate:
            self.counted, self.seen = row["total_votes"], time.time() * 1e3

    def cast(self):
        """Milliseconds from a vote's timestamp until its result has come from the topic."""
        vote = {
            "voter_id": self.voters.pop(),
            "candidate_id": self.candidate,
            "voting_time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "vote": 1,
        }
        counted, sent = self.counted, self.sent
        produce = [*self.kcat, "-P", "-t", "votes_topic", "-X", "queue.buffering.max.ms=0"]
        subprocess.run(produce, input=json.dumps(vote).encode() + b"\n", check=True)
        with self.changed:
            if not self.changed.wait_for(lambda: self.counted > counted and self.sent > sent, VOTE_SECONDS):
                raise Failure(f"a vote was not counted within {VOTE_SECONDS} s")
            return self.seen - self.sent

    def end(self):
        for reader in self.readers:
            reader.kill()

    def phase(self):
        times = []
        for _ in range(VOTES):
            times.append(self.cast())
            time.sleep(0.02)
        return times


class Visitors:
    """Clients that ask again as soon as they are answered. They would be elsewhere: their own work, in a process of
    the lowest priority, must not be what is measured."""

    def __init__(self, url):
        command = [sys.executable, os.path.abspath(__file__), "--visit", url]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=lambda: os.nice(19)
        )

    def leave(self):
        """How often they got which answer."""
        answers, _ = self.process.communicate()
        return json.loads(answers)


def visit(url):
    """The visitors' process: asks until its input ends."""
    stopped, answers = threading.Event(), {}

    def ask_again(query):
        while not stopped.is_set():
            try:
                code = ask(url, query)[0]
            except OSError as error:
                code = type(error).__name__
            answers[code] = answers.get(code, 0) + 1

    threads = [threading.Thread(target=ask_again, args=[WORST[n % len(WORST)]], daemon=True) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join()
    print(json.dumps(answers))


def quantiles(times):
    return statistics.median(times), sorted(times)[int(len(times) * 0.95)], max(times)


def check_gone(demo):
    """The queries' processes end with their visitors."""
    begun = time.monotonic()
    while demo.queries():
        if time.monotonic() - begun > GONE_SECONDS:
            raise Failure(f"{demo.queries()} queries go on {GONE_SECONDS} s after the last was answered")
        time.sleep(0.02)


def run(binary):
    with tempfile.TemporaryDirectory(prefix="tally-visitors-") as directory:
        os.chmod(directory, 0o755)
        demo = Demo(binary, directory)
        votes = None
        try:
            votes = Votes(demo)
            for _ in range(10):
                votes.cast()
            alone, crowded, answers = [], [], {}
            # In turns, so that what else the machine does meets both alike.
            for _ in range(ROUNDS):
                alone += votes.phase()
                visitors = Visitors(demo.url)
                time.sleep(2)
                crowded += votes.phase()
                came = visitors.leave()
                check_gone(demo)
                for code, count in came.items():
                    answers[code] = answers.get(code, 0) + count
        finally:
            if votes:
                votes.end()
            demo.stop()
    for name, times in [("alone", alone), (f"{CLIENTS} visitors", crowded)]:
        print(f"{name:14} p50 {quantiles(times)[0]:7.1f} ms   p95 {quantiles(times)[1]:7.1f} ms   max {quantiles(times)[2]:7.1f} ms")
    print("answers to the visitors:", ", ".join(f"{count} × {code}" for code, count in sorted(answers.items(), key=str)))
    slower = quantiles(crowded)[0] / quantiles(alone)[0]
    print(f"the median is {slower:.2f} times as long")
    if slower > SLOWER_MAX:
        raise Failure(f"more than {SLOWER_MAX}")


if __name__ == "__main__":
    try:
        visit(sys.argv[2]) if sys.argv[1] == "--visit" else run(sys.argv[1])
    except Failure as failure:
        sys.exit(f"visitors-load: {failure}")
