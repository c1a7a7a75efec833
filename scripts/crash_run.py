"""The work of scripts/crash-run: an engine that is killed while it counts, and a recount that knows nothing of it."""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from outage_run import Engine, Failure, Server, free_ports, until

HERE = os.path.dirname(os.path.abspath(__file__))
KILLS = int(os.environ.get("KILLS", "50"))
RATE = int(os.environ.get("RATE", "3000"))
CHECK_EVERY = int(os.environ.get("CHECK_EVERY", "10"))
TIMES = [int(times) for times in os.environ.get("TIMES", "1,2,5").split(",")]  # the how-manieth time a step is met
STEPS = ["before_transaction", "sending", "sent", "before_commit", "after_commit", "checkpoint", "checkpoint_pack",
         "checkpoint_rename"]
PARTITIONS = 4
COUNT_SECONDS = 120
CHOICES = ["1", "2", "3", "4", "5"]

QUERIES = """
CREATE UNBOUNDED EXTERNAL TABLE votes (
  id VARCHAR NOT NULL, choice VARCHAR NOT NULL, weight BIGINT NOT NULL, at TIMESTAMP NOT NULL,
  PRIMARY KEY (id), CHECK (10 / weight > 0)
) STORED AS KAFKA LOCATION 'crash_votes'
OPTIONS ('dead_letter_topic' 'crash_rejected', 'event_time' 'at', 'watermark' '10 seconds', 'max_future' '10000 days');
CREATE MATERIALIZED VIEW by_choice WITH (topic = 'crash_by_choice', key = 'choice') AS
  SELECT choice, COUNT(*) AS n, SUM(weight) AS weight FROM votes GROUP BY choice;
CREATE MATERIALIZED VIEW over_seven WITH (topic = 'crash_over_seven', key = 'weight') AS
  SELECT weight, COUNT(*) AS n FROM votes GROUP BY weight HAVING COUNT(*) % 7 > 2;
CREATE MATERIALIZED VIEW numbers WITH (topic = 'crash_numbers', key = 'number') AS
  SELECT CAST(choice AS BIGINT) AS number, COUNT(*) AS n FROM votes GROUP BY 1;
CREATE MATERIALIZED VIEW heavy WITH (topic = 'crash_heavy') AS SELECT id, weight FROM votes WHERE weight = 9;
"""


class Load:
    """Votes that come all the time, some of them bad. Each voter's are in one partition: the first is the first."""

    def __init__(self, kafka):
        self.kafka, self.random, self.sent, self.stopped = kafka, random.Random(7), 0, threading.Event()
        self.known, self.paused = [], threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def message(self):
        kind = self.random.random()
        voter = f"v{self.random.getrandbits(48):012x}"
        vote = {"id": voter, "choice": self.random.choice(CHOICES), "weight": self.random.randint(1, 9),
                "at": f"2026-01-01 00:{self.random.randint(0, 59):02}:00"}
        if kind < 0.04:
            return voter, "{\"id\": "
        if kind < 0.08 and self.known:
            vote["id"] = voter = self.random.choice(self.known)
        elif kind < 0.11:
            vote["weight"] = 0
        elif kind < 0.14:
            del vote["choice"]
        elif kind < 0.16:
            vote["choice"] = "x"
        if len(self.known) < 5000:
            self.known.append(voter)
        return voter, json.dumps(vote)

    def run(self):
        while not self.stopped.is_set():
            if self.paused.is_set():
                time.sleep(0.02)
                continue
            begun = time.monotonic()
            self.produce(max(1, RATE // 10))
            time.sleep(max(0.0, 0.1 - (time.monotonic() - begun)))

    def produce(self, count):
        lines = "".join(f"{key}\t{value}\n" for key, value in (self.message() for _ in range(count)))
        subprocess.run(["kcat", "-q", "-P", "-b", self.kafka, "-t", "crash_votes", "-K", "\t",
                        "-X", "topic.partitioner=murmur2_random"], input=lines, text=True, check=True)
        self.sent += count

    def stop(self):
        self.stopped.set()
        self.thread.join()


class Topic:
    """What is committed on a topic; each reading goes on where the last one ended."""

    def __init__(self, kafka, name):
        self.kafka, self.name, self.records, self.next = kafka, name, [], {}

    def read(self):
        partitions = range(PARTITIONS)
        new = []
        for partition in partitions:
            run = subprocess.run(
                ["kcat", "-q", "-C", "-e", "-J", "-b", self.kafka, "-t", self.name, "-p", str(partition),
                 "-o", str(self.next.get(partition, 0)), "-X", "isolation.level=read_committed"],
                capture_output=True, check=False)
            for line in run.stdout.splitlines():
                record = json.loads(line)
                headers = record.get("headers") or []
                record["headers"] = dict(zip(headers[::2], headers[1::2]))
                self.next[partition] = record["offset"] + 1
                new.append(record)
        self.records += new
        return new


class Recount:
    """What must be on the topics, from the votes alone."""

    def __init__(self):
        self.seen, self.rejected, self.errors = set(), {}, set()
        self.by_choice = collections.defaultdict(lambda: [0, 0])
        self.by_weight, self.numbers = collections.Counter(), collections.Counter()
        self.heavy = collections.Counter()

    def add(self, record):
        place = (record["partition"], record["offset"])
        try:
            vote = json.loads(record["payload"])
        except ValueError:
            self.rejected[place] = "json"
            return
        if "choice" not in vote:
            self.rejected[place] = "not_null(choice)"
        elif vote["weight"] == 0:
            self.rejected[place] = "check(10 / weight > 0)"
        elif vote["id"] in self.seen:
            self.rejected[place] = "primary_key(id)"
        else:
            self.seen.add(vote["id"])
            self.by_choice[vote["choice"]][0] += 1
            self.by_choice[vote["choice"]][1] += vote["weight"]
            self.by_weight[vote["weight"]] += 1
            if vote["weight"] == 9:
                self.heavy[vote["id"]] += 1
            if vote["choice"].isdigit():
                self.numbers[int(vote["choice"])] += 1
            else:
                self.errors.add(place)

    def views(self):
        return {
            "crash_by_choice": {c: {"choice": c, "n": n, "weight": w} for c, (n, w) in self.by_choice.items()},
            "crash_over_seven": {str(w): {"weight": w, "n": n} for w, n in self.by_weight.items() if n % 7 > 2},
            "crash_numbers": {str(c): {"number": c, "n": n} for c, n in self.numbers.items()},
        }


class Check:
    """Compares the topics with the recount."""

    def __init__(self, kafka):
        names = ["crash_by_choice", "crash_over_seven", "crash_numbers", "crash_rejected", "crash_heavy"]
        self.topics = {name: Topic(kafka, name) for name in names}
        self.votes, self.recount = Topic(kafka, "crash_votes"), Recount()
        self.once, self.newest, self.records = set(), collections.defaultdict(dict), 0

    def step(self):
        """What may be said at any time: nothing is there twice, and each change fits the one before."""
        for name, topic in self.topics.items():
            for record in topic.read():
                self.records += 1
                headers = record["headers"]
                if name == "crash_rejected":
                    once = (name, headers["partition"], headers["offset"], headers["rule"])
                elif name == "crash_heavy":
                    once = (name, record["payload"])
                else:
                    once = (name, record["key"], headers["epoch"])
                    known = self.newest[name]
                    there, op = record["key"] in known, headers["op"]
                    if (op == "insert") == there:
                        raise Failure(f"{name}: {op} of {record['key']}, which was {'' if there else 'not '}there")
                    if op == "delete":
                        del known[record["key"]]
                    else:
                        known[record["key"]] = json.loads(record["payload"])
                if once in self.once:
                    raise Failure(f"twice: {once}")
                self.once.add(once)

    def whole(self):
        """Once all votes are counted: the topics are what the recount says."""
        for record in sorted(self.votes.read(), key=lambda record: (record["partition"], record["offset"])):
            self.recount.add(record)
        self.step()
        for name, rows in self.recount.views().items():
            if self.newest[name] != rows:
                raise Failure(f"{name}: {self.newest[name]} and not {rows}")
        letters = self.topics["crash_rejected"].records
        told = {(int(r["headers"]["partition"]), int(r["headers"]["offset"])): r["headers"]["rule"]
                for r in letters if not r["headers"]["rule"].startswith("error(")}
        if told != self.recount.rejected:
            other = set(told.items()) ^ set(self.recount.rejected.items())
            raise Failure(f"{len(other)} letters differ, such as {sorted(other)[:3]}")
        errors = {(int(r["headers"]["partition"]), int(r["headers"]["offset"]))
                  for r in letters if r["headers"]["rule"].startswith("error(")}
        if errors != self.recount.errors:
            raise Failure(f"{len(errors ^ self.recount.errors)} rows are left out of a view or not")
        heavy = collections.Counter(json.loads(r["payload"])["id"] for r in self.topics["crash_heavy"].records)
        if heavy != self.recount.heavy:
            raise Failure(f"crash_heavy: {len(set(heavy.items()) ^ set(self.recount.heavy.items()))} rows differ")


class CrashRun:
    def __init__(self, binary, directory, kafka):
        self.tally, self.directory, self.kafka = [binary], directory, kafka
        os.makedirs(os.path.join(directory, "queries"))
        with open(os.path.join(directory, "queries", "crash.sql"), "w") as file:
            file.write(QUERIES)
        with open(os.path.join(directory, "tally.toml"), "w") as file:
            file.write(f'engine_id = "crash"\npartitions = {PARTITIONS}\nqueries = "queries"\n'
                       f'checkpoint_interval_s = 1\n[kafka]\nbootstrap.servers = "{kafka}"\n')
        subprocess.run([binary, "topics"], cwd=directory, check=True, capture_output=True)
        self.load, self.check, self.replayed = Load(kafka), Check(kafka), []

    def start(self, crash=None):
        """An engine that nobody asks anything; it ends by itself at the step that `crash` names."""
        environment = {**os.environ, **({"TALLY_TEST_CRASH": crash} if crash else {})}
        with open(os.path.join(self.directory, "killed.log"), "ab") as log:
            return subprocess.Popen(self.tally + ["run", "--listen", "127.0.0.1:0"], cwd=self.directory,
                                    env=environment, stdout=log, stderr=log)

    def kill(self, process):
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise Failure(f"it had ended by itself, with {process.returncode}: see killed.log")

    def catch_up(self):
        """Everything is counted and compared; how long the start took to be ready."""
        self.load.paused.set()
        time.sleep(0.3)
        begun = time.monotonic()
        engine = Engine(self.tally, self.directory)
        sent = self.load.sent
        until(COUNT_SECONDS, "counting all votes", lambda: engine.source()["received"] >= sent)
        took = time.monotonic() - begun
        self.check.whole()
        self.kill(engine.process)
        self.load.paused.clear()
        return took

    def run(self):
        print(f"{'what':<34} {'times':>5} {'votes':>9} {'records':>9} {'differences':>11}  start to counted")
        for step in STEPS:
            for times in TIMES:
                process = self.start(f"{step}:{times}")
                until(60, f"the crash at {step}", lambda: process.poll() is not None)
                if process.returncode != -signal.SIGABRT:
                    raise Failure(f"{step}: it ended with {process.returncode}")
                self.check.step()
            self.row(f"crash at {step}", len(TIMES))
        for kill in range(1, KILLS + 1):
            process = self.start()
            time.sleep(random.expovariate(2.0) + random.random() * 0.2)
            self.kill(process)
            self.check.step()
            if kill % CHECK_EVERY == 0 or kill == KILLS:
                self.row(f"kill -9 at a random moment, to {kill}", min(CHECK_EVERY, KILLS))

    def row(self, what, times):
        took = self.catch_up()
        print(f"{what:<34} {times:>5} {self.load.sent:>9} {self.check.records:>9} {0:>11}  {took:.1f} s", flush=True)


def main():
    directory = tempfile.mkdtemp(prefix="tally-crash-", dir="/tmp")
    kafka_directory, code, run = os.path.join(directory, "kafka"), 1, None
    os.makedirs(kafka_directory)
    if os.environ.get("KAFKA_LIB"):
        os.symlink(os.path.abspath(os.environ["KAFKA_LIB"]), os.path.join(kafka_directory, "lib"))
    kafka = Server("Kafka", "real-kafka", kafka_directory, int(os.environ.get("PORT") or free_ports(3)), "pid")
    try:
        run = CrashRun(sys.argv[1], os.path.join(directory, "run"), kafka.address)
        begun = time.monotonic()
        run.run()
        print(f"crash-run: {KILLS + len(TIMES) * len(STEPS)} crashes, {run.load.sent} votes, no difference, "
              f"{time.monotonic() - begun:.0f} s")
        code = 0
    except Failure as failure:
        print(f"crash-run: {failure}", file=sys.stderr)
        directory = None if code == 0 else directory
    finally:
        if run:
            run.load.stop()
        kafka.stop()
        if code == 0:
            shutil.rmtree(directory)
        elif directory:
            print(f"crash-run: what is left is in {directory}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
