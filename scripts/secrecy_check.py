"""The attackers of scripts/secrecy-check."""

import bisect
import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

VOTERS = os.environ.get("VOTERS", "4000")
NIGHT = os.environ.get("NIGHT", "40s")
CELL_MIN = 10
START_SECONDS, COUNT_SECONDS, QUIET_SECONDS = 180, 600, 3
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TOTALS, PLACES, EVERY_PLACE = "votes_per_candidate", "place_results", "votes_by_place"
# Views that tell who has voted, each with its group column and the register's.
TURNOUT = {
    "turnout_by_age": ("age_band", "CASE WHEN registered_age < 25 THEN '18-24' WHEN registered_age < 35 THEN '25-34' "
                       "WHEN registered_age < 50 THEN '35-49' WHEN registered_age < 65 THEN '50-64' ELSE '65+' END"),
    "turnout_by_gender": ("gender", "gender"),
    "turnout_by_location": ("state", "address_state"),
    "turnout_by_region": ("city", "address_city"),
}


class Follower(threading.Thread):
    """Keeps what /api/changes says: after each event its epoch, and the rows of all views."""

    def __init__(self, url, token=None):
        super().__init__(daemon=True)
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.epochs, self.states = [], []

    def open(self, path):
        return urllib.request.urlopen(urllib.request.Request(self.url + path, headers=self.headers), timeout=60)

    def run(self):
        rows, keys, event = {}, {}, None
        try:
            for line in self.open("/api/changes"):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    told = json.loads(value)
                    # A view that is there only since the engine has started is told by its changes.
                    if event == "snapshot" or not keys.keys() >= told["views"].keys():
                        with self.open("/api/views") as response:
                            views = json.load(response)["views"]
                        keys = {view["name"]: view["key"] or [column["name"] for column in view["columns"]] for view in views}
                    for view, part in told["views"].items():
                        key = lambda row: tuple(row[column] for column in keys[view])
                        if event == "snapshot":
                            rows[view] = {key(row): row for row in part["rows"]}
                            continue
                        rows[view] = dict(rows.get(view, {}))
                        for change in part["changes"]:
                            if change["op"] == "delete":
                                rows[view].pop(key(change["row"]), None)
                            else:
                                rows[view][key(change["row"])] = change["row"]
                    self.epochs.append(told["epoch"])
                    self.states.append(dict(rows))
        except OSError:
            pass  # the demo has ended


def counts(state, view, column, value):
    return collections.Counter({row[column]: row[value] or 0 for row in state.get(view, {}).values()})


def minus(a, b):
    """What is in one and not in the other, by choice; less than none where it is the other way round."""
    return {choice: a[choice] - b[choice] for choice in a | b if a[choice] != b[choice]}


def name_voters(states, register):
    """Whom the first attacker names: of ballots that all chose alike, the only voters who fit the groups that moved."""
    named, voted = {}, set()
    for before, after in zip(states, states[1:]):
        choices = minus(counts(after, TOTALS, "candidate_id", "total_votes"), counts(before, TOTALS, "candidate_id", "total_votes"))
        if len(choices) != 1:
            continue
        groups = {column: minus(counts(after, view, column, "count"), counts(before, view, column, "count"))
                  for view, (column, _) in TURNOUT.items() if view in after and view in before}
        fits = [voter for voter, own in register.items() if voter not in voted
                and all(own[column] in of for column, of in groups.items())]
        if len(fits) <= sum(choices.values()):
            voted.update(fits)
            named.update({voter: next(iter(choices)) for voter in fits})
    return named


def by_place(state, view):
    places = collections.defaultdict(collections.Counter)
    for row in state.get(view, {}).values():
        places[row["place"]][row["candidate_id"]] = row["votes"]
    return places


def rests(told, ballots):
    """What the second attacker is left with: of the ballots between two releases, less some places, or of places less the
    ballots between two releases, sets of few or of people who all chose alike. `told`: of each release the places that
    are shown in it; `ballots`: how many of each place, by choice, are counted in it."""
    found, shown = [], {}
    for release, places in enumerate(told):
        for place in places:
            shown.setdefault(place, release)
    for j, now in enumerate(ballots):
        for i in range(-1, j):
            then = ballots[i] if i >= 0 else {}
            moved = {place: collections.Counter(minus(now[place], then.get(place, collections.Counter()))) for place in now}
            moved = {place: of for place, of in moved.items() if of}
            if not moved:
                continue
            look(found, f"releases {i} to {j}", moved.values())
            # Of each shown place, whether it is subtracted: where most of it lies between the two, what is left is less.
            rest = []
            for place, of in moved.items():
                outside = minus(ballots[shown[place]][place], of) if place in shown else None
                if outside is not None and sum(outside.values()) < of.total():
                    rest.append(collections.Counter(outside))
                else:
                    rest.append(of)
            look(found, f"releases {i} to {j} and the places that lie between them", rest)
            for place in set(moved) & set(shown):
                outside = collections.Counter(minus(ballots[shown[place]][place], moved[place]))
                look(found, f"releases {i} to {j} and {place}", [outside, *(of for other, of in moved.items() if other != place)])
    return found


def look(found, what, parts):
    sizes = collections.Counter()
    for part in parts:
        sizes.update({choice: abs(n) for choice, n in part.items() if n})
    if sizes and (len(sizes) == 1 or sizes.total() < CELL_MIN):
        found.append((what, dict(sizes)))


def psql(url, sql):
    run = subprocess.run(["psql", "-X", "-q", "-At", "-F", "\t", "-d", url, "-c", sql], capture_output=True, text=True, check=True)
    return [line.split("\t") for line in run.stdout.splitlines()]


def main():
    with tempfile.TemporaryDirectory(prefix="secrecy-check-") as directory:
        os.chmod(directory, 0o755)  # Postgres's account must be able to enter
        log = os.path.join(directory, "log")
        command = [sys.argv[1], "demo", "--voters", VOTERS, "--night", NIGHT, "--seed", "7", "--listen", "127.0.0.1:0"]
        with open(log, "wb") as out:
            demo = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            attack(demo, log)
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait(30)


def addresses(demo, log):
    found, deadline = {}, time.monotonic() + START_SECONDS
    patterns = {"url": r"dashboard\W+(http://[^\s/]+)", "postgres": r"postgres\W+(postgres\S+)", "token": r"token\s+(\S+)"}
    while len(found) < 3:
        if demo.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"secrecy-check: the demo did not start: {open(log).read()[-2000:]}")
        text = ANSI.sub("", open(log, errors="replace").read())
        matches = {name: re.search(pattern, text) for name, pattern in patterns.items()}
        found = {name: match[1] for name, match in matches.items() if match}
        time.sleep(0.1)
    while True:
        try:
            urllib.request.urlopen(f"{found['url']}/healthz", timeout=5)
            return found
        except OSError:
            time.sleep(0.1)


def until_counted(url):
    """Waits until everything is counted and released."""
    status, quiet, deadline = None, 0, time.monotonic() + COUNT_SECONDS
    while quiet < QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(f"{url}/api/status", timeout=10) as response:
            newest = json.load(response)
        state = (newest["release"]["rows"], newest["release"]["complete"])
        quiet, status = quiet + 1 if state[1] and state == status else 0, state


def attack(demo, log):
    found = addresses(demo, log)
    anonymous, operator = Follower(found["url"]), Follower(found["url"], found["token"])
    operator.start()
    anonymous.start()
    until_counted(found["url"])
    columns = ", ".join(f"{own} AS {column}" for column, own in TURNOUT.values())
    names = [column for column, _ in TURNOUT.values()]
    register = {row[0]: dict(zip(names, row[1:])) for row in psql(found["postgres"], f"SELECT voter_id, {columns} FROM voters")}
    truth = dict(psql(found["postgres"], "SELECT voter_id, candidate_id FROM votes"))
    epochs, releases = list(operator.states), list(anonymous.states)
    print(f"{len(register)} voters, {len(truth)} ballots, {len(epochs)} epochs, {len(releases)} releases")
    # The operator's rows of all places as of the epoch of each release: whose ballots came in it.
    at = lambda epoch: by_place(epochs[max(bisect.bisect_right(operator.epochs, epoch) - 1, 0)], EVERY_PLACE)
    ballots = {"epochs": [by_place(state, EVERY_PLACE) for state in epochs], "releases": [at(epoch) for epoch in anonymous.epochs[:len(releases)]]}
    failed = False
    for who, states in [("epochs", epochs), ("releases", releases)]:
        named = name_voters(states, register)
        right = sum(truth.get(voter) == choice for voter, choice in named.items())
        # Of all epochs together the second attacker would find the same again and again: the first hundred are enough.
        told = [by_place(state, PLACES) for state in states]
        left = rests(*((told, ballots[who]) if who == "releases" else (told[:100], ballots[who][:100])))
        print(f"from {who}: {len(named)} voters named, {right} of them rightly; {len(left)} small or uniform rests; {len(told[-1])} places shown")
        for what, sizes in left[:5] if who == "releases" else []:
            print(f"  {what}: {sizes}")
        failed |= bool(named or left) if who == "releases" else not left
    totals = counts(releases[-1], TOTALS, "candidate_id", "total_votes")
    if totals.total() != len(truth) or len(releases) < 5:
        sys.exit(f"secrecy-check: {totals.total()} ballots in {len(releases)} releases: too few to say anything")
    if not told[-1]:
        sys.exit("secrecy-check: no place is shown, so nothing could be subtracted")
    if failed:
        sys.exit("secrecy-check: FAILED")
    print("secrecy-check: nobody is named")


main()
