"""The work of scripts/bench-kafka: votes of the reference election through `tally run`, measured from outside."""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from outage_run import Engine, Failure, Server, free_ports, until

VOTES = int(os.environ.get("VOTES", "500000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SINGLE_VOTES = 200
COUNT_SECONDS = 300
PARTITIONS = 4
STATES = ["Cumbria", "Devon", "Dorset", "Durham", "Essex", "Kent", "Norfolk", "Suffolk", "Surrey", "Sussex"]
QUERIES = """
CREATE UNBOUNDED EXTERNAL TABLE votes (
  voter_id VARCHAR NOT NULL, candidate_id VARCHAR, candidate_name VARCHAR, party_affiliation VARCHAR,
  photo_url VARCHAR, vote INT, address STRUCT<state VARCHAR>
) STORED AS KAFKA LOCATION '{votes}' OPTIONS ('format' 'json');
CREATE MATERIALIZED VIEW per_candidate WITH (topic = '{votes}_per_candidate', key = 'candidate_id') AS
  SELECT candidate_id, candidate_name, party_affiliation, photo_url, SUM(vote) AS total_votes
  FROM votes GROUP BY candidate_id, candidate_name, party_affiliation, photo_url;
CREATE MATERIALIZED VIEW by_location WITH (topic = '{votes}_by_location', key = 'state') AS
  SELECT address['state'] AS state, COUNT(*) AS count FROM votes GROUP BY address['state'];
"""


def vote(number):
    """A message as the reference system writes it."""
    candidate = number * 7919 % 3
    return json.dumps({
        "voter_id": f"{number:032x}", "voter_name": f"Voter Number {number}", "date_of_birth": "1971-05-17T08:12:03.101Z",
        "gender": "female", "nationality": "GB", "registration_number": f"{number:012d}",
        "address": {"street": f"{number % 977} The Crescent", "city": "Westminster", "state": STATES[number * 31 % 10],
                    "country": "United Kingdom", "postcode": "N1 9GU"},
        "email": f"voter.{number}@example.com", "phone_number": "016977 3456", "cell_number": "07700 900123",
        "picture": "https://example.com/api/portraits/women/12.jpg", "registered_age": 52,
        "candidate_id": f"{candidate:032x}", "candidate_name": f"Candidate {candidate}",
        "party_affiliation": ["Management Party", "Savior Party", "Tech Republic Party"][candidate],
        "biography": "A brief bio of the candidate.", "campaign_platform": "Key campaign promises or platform.",
        "photo_url": f"https://example.com/api/portraits/men/{candidate}.jpg",
        "voting_time": "2026-11-01 10:00:00", "vote": 1})


class Bench:
    def __init__(self, kafka, directory):
        self.kafka, self.directory = kafka, directory
        self.bytes = 0

    def settings(self, number, topic):
        queries = os.path.join(self.directory, f"queries{number}")
        os.makedirs(queries, exist_ok=True)
        with open(os.path.join(queries, "bench.sql"), "w") as file:
            file.write(QUERIES.format(votes=topic))
        path = os.path.join(self.directory, f"tally{number}.toml")
        with open(path, "w") as file:
            file.write(f'partitions = {PARTITIONS}\nqueries = "{queries}"\n[kafka]\nbootstrap.servers = "{self.kafka}"\n')
        return path

    def produce(self, topic, numbers):
        kcat = subprocess.Popen(["kcat", "-q", "-P", "-b", self.kafka, "-t", topic, "-K", "\t", "-X", "linger.ms=20"],
                                stdin=subprocess.PIPE)
        for number in numbers:
            line = vote(number)
            self.bytes += len(line)
            kcat.stdin.write(f"{number:032x}\t{line}\n".encode())
        kcat.stdin.close()
        if kcat.wait():
            raise Failure("kcat could not produce")

    def run(self, binary, round_number, names):
        """Counts all votes of a topic that is full, then single ones; what was measured."""
        topic = f"bench_{round_number}_{names}"
        config = self.settings(f"{round_number}_{names}", topic)
        tally = [binary, "--config", config]
        # Engines of before have no engine_id; each run has a log of its own all the same.
        with open(config) as file:
            plain = file.read()
        with open(config, "w") as file:
            file.write(f'engine_id = "{topic}"\n' + plain)
        if subprocess.run(tally + ["config"], capture_output=True, check=False).returncode:
            with open(config, "w") as file:
                file.write(plain)
        subprocess.run(tally + ["topics"], check=True, capture_output=True)
        # Counting goes on while results are written: the first half is there before, …
        engine = Engine(tally, self.directory)
        until(60, "readiness", lambda: engine.get("/readyz")[0] == 200)
        os.kill(engine.process.pid, 19)
        self.produce(topic, range(VOTES))
        # … and every micro-batch then writes what it changes.
        cpu, begun = engine.cpu_seconds(), time.monotonic()
        os.kill(engine.process.pid, 18)
        until(COUNT_SECONDS, "counting", lambda: engine.source()["received"] >= VOTES)
        took, cpu = time.monotonic() - begun, engine.cpu_seconds() - cpu
        times = self.single(topic)
        stages = engine.get("/api/status")[1]["batches"]
        engine.process.kill()
        engine.process.wait()
        return VOTES / took, cpu * 1e6 / VOTES, times, stages

    def single(self, topic):
        """From the producer's call until a consumer of committed records has the result, for votes one by one."""
        arrived = []
        consumer = subprocess.Popen(
            ["kcat", "-q", "-u", "-C", "-b", self.kafka, "-t", f"{topic}_per_candidate", "-o", "end", "-f", "%T\n",
             "-X", "isolation.level=read_committed", "-X", "fetch.wait.max.ms=5"], stdout=subprocess.PIPE)
        reader = threading.Thread(target=lambda: [arrived.append(time.monotonic()) for _ in consumer.stdout])
        reader.start()
        producer = subprocess.Popen(
            ["kcat", "-q", "-P", "-b", self.kafka, "-t", topic, "-K", "\t", "-X", "linger.ms=0"], stdin=subprocess.PIPE)
        time.sleep(2)
        times, rng = [], random.Random(1)
        for number in range(SINGLE_VOTES):
            before, begun = len(arrived), time.monotonic()
            producer.stdin.write(f"{number:032x}\t{vote(VOTES + number)}\n".encode())
            producer.stdin.flush()
            while len(arrived) == before:
                if time.monotonic() - begun > 10:
                    raise Failure("a single vote did not arrive")
                time.sleep(0.0005)
            times.append((arrived[before] - begun) * 1000)
            time.sleep(rng.random() * 0.05)
        producer.stdin.close()
        consumer.kill()
        reader.join()
        return sorted(times)


def main(binaries):
    directory, code = tempfile.mkdtemp(prefix="tally-bench-", dir="/tmp"), 1
    kafka_directory = os.path.join(directory, "kafka")
    os.makedirs(kafka_directory)
    if os.environ.get("KAFKA_LIB"):
        os.symlink(os.path.abspath(os.environ["KAFKA_LIB"]), os.path.join(kafka_directory, "lib"))
    kafka = Server("Kafka", "real-kafka", kafka_directory, int(os.environ.get("PORT") or free_ports(3)), "pid")
    try:
        bench = Bench(kafka.address, directory)
        print(f"{'binary':<40} {'votes/s':>9} {'CPU s/1e6':>9} {'p50 ms':>7} {'p99 ms':>7}  stages, total s", flush=True)
        rates = {}
        for number in range(ROUNDS):
            for names, binary in enumerate(binaries):
                rate, cpu, times, batches = bench.run(binary, number, names)
                rates.setdefault(binary, []).append(rate)
                p50, p99 = statistics.median(times), times[len(times) * 99 // 100]
                stages = {name: round(stage["total_s"], 2) for name, stage in batches["stages"].items()}
                print(f"{binary[-40:]:<40} {rate:>9.0f} {cpu:>9.2f} {p50:>7.1f} {p99:>7.1f}  {stages}", flush=True)
        medians = {binary: statistics.median(of) for binary, of in rates.items()}
        first = medians[binaries[0]]
        for binary, rate in medians.items():
            print(f"median {rate:.0f} votes/s, {rate / first:.0%} of the first: {binary}")
        code = 0
    except Failure as failure:
        print(f"bench-kafka: {failure}", file=sys.stderr)
    finally:
        kafka.stop()
        shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
