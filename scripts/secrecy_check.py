"""The attackers of scripts/secrecy-check."""

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

VOTERS = os.environ.get("VOTERS", "300")
RATE = os.environ.get("RATE", "20")
CELL_MIN = 10
START_SECONDS, COUNT_SECONDS = 180, 600
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TOTALS = "votes_per_candidate"
# Views that tell who has voted, each with its group column and the register's.
TURNOUT = {
    "turnout_by_age": ("age_band", "CASE WHEN registered_age < 25 THEN '18-24' WHEN registered_age < 35 THEN '25-34' "
                       "WHEN registered_age < 50 THEN '35-49' WHEN registered_age < 65 THEN '50-64' ELSE '65+' END"),
    "turnout_by_gender": ("gender", "gender"),
    "turnout_by_location": ("state", "address_state"),
    "turnout_by_region": ("city", "address_city"),
}


class Follower(threading.Thread):
    """Keeps what /api/changes says: after each event, the rows of all views."""

    def __init__(self, url, token=None):
        super().__init__(daemon=True)
        self.request = urllib.request.Request(f"{url}/api/changes")
        if token:
            self.request.add_header("Authorization", f"Bearer {token}")
        self.states = []

    def run(self):
        rows, keys = {}, {}
        event = None
        try:
            for line in urllib.request.urlopen(self.request, timeout=60):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    for view, part in json.loads(value)["views"].items():
                        if event == "snapshot":
                            rows[view] = part["rows"]
                            continue
                        key = keys.setdefault(view, key_of(self.request.full_url, self.request.headers, view))
                        same = lambda a, b: all(a.get(column) == b.get(column) for column in key)
                        for change in part["changes"]:
                            rows[view] = [row for row in rows.get(view, []) if not same(row, change["row"])]
                            if change["op"] != "delete":
                                rows[view].append(change["row"])
                    self.states.append({view: list(of) for view, of in rows.items()})
        except OSError:
            pass  # the demo has ended


def key_of(url, headers, view):
    request = urllib.request.Request(url.replace("/api/changes", "/api/views"), headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        found = next(entry for entry in json.load(response)["views"] if entry["name"] == view)
    return found["key"] or [column["name"] for column in found["columns"]]


def moved(before, after, column, value):
    """By group, how many were added."""
    of = lambda rows: {row[column]: row[value] or 0 for row in rows}
    old, new = of(before), of(after)
    return {group: new[group] - old.get(group, 0) for group in new if new[group] != old.get(group, 0)}


def name_voters(states, register):
    """Whom the first attacker names: of ballots that all chose alike, the only voter who fits the groups that moved."""
    named, voted = {}, set()
    for before, after in zip(states, states[1:]):
        choices = moved(before.get(TOTALS, []), after.get(TOTALS, []), "candidate_id", "total_votes")
        if len(choices) != 1:
            continue
        groups = {column: moved(before[view], after[view], column, "count")
                  for view, (column, _) in TURNOUT.items() if view in after and view in before}
        fits = [voter for voter, own in register.items() if voter not in voted
                and all(own[column] in of for column, of in groups.items())]
        if len(fits) <= sum(choices.values()):
            voted.update(fits)
            named.update({voter: next(iter(choices)) for voter in fits})
    return named


def rests(states):
    """What the second attacker finds: sets of fewer than CELL_MIN ballots, or all alike, by subtracting views and releases."""
    found = []

    def look(what, counts):
        counts = {choice: n for choice, n in counts.items() if n}
        total = sum(abs(n) for n in counts.values())
        if counts and (len(counts) == 1 or total < CELL_MIN):
            found.append((what, counts))

    for i, state in enumerate(states):
        totals = {row["candidate_id"]: row["total_votes"] for row in state.get(TOTALS, [])}
        for j in range(i):
            look(f"release {j} to {i}", moved(states[j].get(TOTALS, []), state.get(TOTALS, []), "candidate_id", "total_votes"))
        for view, rows in state.items():
            if view == TOTALS or not rows or "candidate_id" not in rows[0] or len(rows) <= len(totals):
                continue
            votes = next((name for name in ("votes", "total_votes", "count") if name in rows[0]), None)
            if votes is None:
                continue
            rest = dict(totals)
            for row in rows:
                rest[row["candidate_id"]] = rest.get(row["candidate_id"], 0) - (row[votes] or 0)
            look(f"{view}: the rest at release {i}", rest)
    return found


def psql(url, sql):
    run = subprocess.run(["psql", "-X", "-q", "-At", "-F", "\t", "-d", url, "-c", sql], capture_output=True, text=True, check=True)
    return [line.split("\t") for line in run.stdout.splitlines()]


def main():
    with tempfile.TemporaryDirectory(prefix="secrecy-check-") as directory:
        log = os.path.join(directory, "log")
        command = [sys.argv[1], "demo", "--voters", VOTERS, "--rate", RATE, "--seed", "7", "--listen", "127.0.0.1:0"]
        with open(log, "wb") as out:
            demo = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            attack(demo, log)
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait(30)


def attack(demo, log):
    found, deadline = {}, time.monotonic() + START_SECONDS
    patterns = {"url": r"dashboard\W+(http://[^\s/]+)", "postgres": r"postgres\W+(postgres\S+)", "token": r"token\s+(\S+)"}
    while len(found) < 3:
        if demo.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"secrecy-check: the demo did not start: {open(log).read()[-2000:]}")
        text = ANSI.sub("", open(log, errors="replace").read())
        matches = {name: re.search(pattern, text) for name, pattern in patterns.items()}
        found = {name: match[1] for name, match in matches.items() if match}
        time.sleep(0.1)
    url = found["url"]
    while True:
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=5)
            break
        except OSError:
            time.sleep(0.2)
    anonymous, operator = Follower(url), Follower(url, found["token"])
    anonymous.start()
    operator.start()
    status, quiet = None, 0
    deadline = time.monotonic() + COUNT_SECONDS
    while quiet < 5 and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(f"{url}/api/status", timeout=10) as response:
            newest = json.load(response)
        counted = sum(source["counted"] for source in newest["sources"])
        still = counted > 0 and status == (counted, newest["release"]["release"]) and newest["release"]["unreleased_rows"] == 0
        quiet, status = quiet + 1 if still else 0, (counted, newest["release"]["release"])
    columns = ", ".join(f"{own} AS {column}" for column, own in TURNOUT.values())
    names = [column for column, _ in TURNOUT.values()]
    register = {row[0]: dict(zip(names, row[1:])) for row in psql(found["postgres"], f"SELECT voter_id, {columns} FROM voters")}
    truth = dict(psql(found["postgres"], "SELECT voter_id, candidate_id FROM votes"))
    print(f"{len(register)} voters, {len(truth)} ballots, {len(operator.states)} epochs, {len(anonymous.states)} releases")
    failed = False
    for who, states in [("epochs", operator.states), ("releases", anonymous.states)]:
        named = name_voters(states, register)
        right = sum(truth.get(voter) == choice for voter, choice in named.items())
        left = rests(states)
        print(f"from {who}: {len(named)} voters named, {right} of them rightly; {len(left)} small or uniform rests")
        for what, counts in left[:5] if who == "releases" else []:
            print(f"  {what}: {counts}")
        failed |= bool(named or left) if who == "releases" else not named
    if len(anonymous.states) < 3:
        sys.exit("secrecy-check: too few releases to say anything")
    if failed:
        sys.exit("secrecy-check: FAILED")
    print("secrecy-check: nobody is named")


main()
