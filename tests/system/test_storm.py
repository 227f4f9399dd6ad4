# SPDX-License-Identifier: PostgreSQL
"""
The storm: writers and publishers go on while walstreamd and PostgreSQL are killed with SIGKILL again
and again. A connected QoS 1 subscriber sees every committed change, each row's changes in commit
order; every PUBACKed message is in the table, once; `pgctl status` tells the truth all along.

HOWDAH_STORM_ROWS, HOWDAH_STORM_KILLS, HOWDAH_STORM_SECONDS and HOWDAH_STORM_SEED change its size.
"""
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict, deque

import paho.mqtt.client as mqtt
import psycopg2

from suite import process_alive, wait_until

ROWS = int(os.environ.get("HOWDAH_STORM_ROWS", 100_000))
KILLS = int(os.environ.get("HOWDAH_STORM_KILLS", 20))
SECONDS = int(os.environ.get("HOWDAH_STORM_SECONDS", 60))
SEED = int(os.environ.get("HOWDAH_STORM_SEED", time.time_ns() % 1_000_000))
WRITERS = 4
PUBLISHERS = 2


class Killer(threading.Thread):
    """Kills one target 1 to 2 s after each time it came UP."""

    def __init__(self, suite, target, worker, seed, log):
        super().__init__(daemon=True)
        self.suite, self.target, self.worker = suite, target, worker
        self.random = random.Random(seed)
        self.log = log
        self.kills = 0
        self.stop = threading.Event()
        self.error = None

    def run(self):
        try:
            last = None
            while not self.stop.is_set():
                row = self.suite.status(self.worker)
                if row.get("state") != "UP" or row.get("pid") == last:
                    time.sleep(0.05)
                    continue
                last = row["pid"]
                time.sleep(self.random.uniform(1, 2))
                pid = self.suite.postmaster_pid() if self.target == "postmaster" else last
                if pid and process_alive(pid):
                    self.log.append((time.monotonic(), self.worker, pid))
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
        except Exception as e:
            self.error = e


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class StatusWatcher(threading.Thread):
    """Compares each answer of `pgctl -j status` with /proc and the kill log."""

    def __init__(self, suite, log):
        super().__init__(daemon=True)
        self.suite, self.log = suite, log
        self.samples = 0
        self.wrong = []
        self.stop = threading.Event()

    def run(self):
        generations = {}
        while not self.stop.is_set():
            asked = time.monotonic()
            rows = self.suite.status()
            answered = time.monotonic()
            if not rows:
                self.wrong.append("no answer")
            for worker in self.suite.workers():
                row = rows.get(worker, {})
                self.samples += 1
                generation = row.get("generation", 0)
                if generation < generations.get(worker, 0):
                    self.wrong.append(f"{worker}: generation went back to {generation}")
                generations[worker] = generation
                if row.get("state") != "UP":
                    continue
                pid = row.get("pid")
                line = command_line(pid) if pid and process_alive(pid) else b""
                if line:  # one that is on its way out has none any more
                    if worker.encode() not in line and command_line(pid):
                        self.wrong.append(f"{worker}: pid {pid} is something else")
                elif not any(w == worker and at > asked - 0.5 for at, w, _ in self.log):
                    self.wrong.append(f"{worker}: UP with dead pid {pid}, killed by nobody since {asked}"
                                      f" (answered {answered})")
            time.sleep(0.1)


def writer(suite, n, target, deadline, state):
    """Rows of its own id range; each inserted with v = 1, some updated step by step."""
    rnd = random.Random(SEED * 100 + n)
    conn, done, next_id = None, 0, n * 10_000_000 + 1
    pace = target / SECONDS
    began = time.monotonic()
    while done < target or time.monotonic() < deadline():
        ahead = done / pace - (time.monotonic() - began)
        if ahead > 0:
            time.sleep(min(ahead, 0.2))
            if done > pace * (time.monotonic() - began):
                continue
        try:
            if conn is None:
                conn = psycopg2.connect(host=f"{suite.run_dir}/postgres", user="howdah", dbname="howdah")
            with conn.cursor() as cur:
                size = rnd.randint(1, 40)
                cur.execute("INSERT INTO storm SELECT g, 1 FROM generate_series(%s, %s) g",
                            (next_id, next_id + size - 1))
                if rnd.random() < 0.5:
                    cur.execute("UPDATE storm SET v = v + 1 WHERE id = ANY(%s)",
                                ([rnd.randint(n * 10_000_000 + 1, next_id) for _ in range(5)],))
                if rnd.random() < 0.1:
                    conn.rollback()
                else:
                    conn.commit()
                    done += size
                next_id += size
        except psycopg2.Error:
            # The commit may or may not have happened: the table tells in the end.
            next_id += 40
            if conn is not None:
                conn.close()
            conn = None
            time.sleep(0.05)
    if conn is not None:
        conn.close()
    state[n] = done


class Publisher:
    """Publishes numbered messages with a window of 20, remembers what was acknowledged.

    The client library calls on_publish under a lock that its publish() takes too: the callback only
    notes the id, and the publishing thread does the rest."""

    def __init__(self, suite, n, stop):
        self.acked, self.sent, self.waiting = set(), 0, {}
        self.answered = deque()
        self.disconnects = 0
        self.client = mqtt.Client(client_id=f"storm-pub-{n}", protocol=mqtt.MQTTv311)
        self.client.max_inflight_messages_set(20)
        self.client.max_queued_messages_set(0)
        self.client.on_publish = lambda client, userdata, mid: self.answered.append(mid)
        self.client.on_disconnect = self._on_disconnect
        self.client.connect("127.0.0.1", suite.mqtt_port)
        self.client.loop_start()
        self.n, self.stop = n, stop
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _on_disconnect(self, client, userdata, rc):
        self.disconnects += rc != 0

    def _run(self):
        while not self.stop.is_set():
            self.collect()
            if len(self.waiting) < 20:
                payload = f"{self.n}-{self.sent}"
                self.sent += 1
                self.waiting[self.client.publish(f"storm/{self.n}", payload, qos=1).mid] = payload
            time.sleep(0.002)

    def collect(self):
        """Takes the acknowledgements that have come; returns how many are still to come."""
        while self.answered:
            self.acked.add(self.waiting.pop(self.answered.popleft()))
        return len(self.waiting)


def check_changes(events, final, rows):
    """events: [(id, op, v)] as received; final: {id: v} of the table."""
    seen = defaultdict(list)
    duplicates = 0
    for key, op, v in events:
        if v in seen[key]:
            duplicates += 1
        else:
            seen[key].append(v)
    missing = [(key, v) for key, last in final.items() for v in range(1, last + 1) if v not in seen[key]]
    assert not missing, f"{len(missing)} changes never came, first {missing[:5]}"
    unordered = [key for key, vs in seen.items() if vs != sorted(vs)]
    assert not unordered, f"{len(unordered)} rows out of order, first {unordered[:5]}"
    ghosts = [key for key in seen if key not in final]
    assert not ghosts, f"{len(ghosts)} rows that were never committed, first {ghosts[:5]}"
    assert len(final) >= rows
    return duplicates


def test_storm(make_suite, report):
    suite = make_suite()
    report(f"storm: seed {SEED}")
    suite.sql("CREATE TABLE storm (id bigint PRIMARY KEY, v int)")
    suite.sql("SELECT howdah_mqtt.publish_table('storm'::regclass, 'storm-rows/{id}')")
    sub = suite.subscribe("storm-rows/#", extra=("-k", "1200"))
    log = []
    killers = [Killer(suite, "walstreamd", "walstreamd", SEED + 1, log),
               Killer(suite, "postmaster", "postgres", SEED + 2, log)]
    watcher = StatusWatcher(suite, log)
    stop_publishing = threading.Event()
    publishers = [Publisher(suite, n, stop_publishing) for n in range(PUBLISHERS)]
    began = time.monotonic()
    state = {}

    def deadline():
        enough = all(k.kills >= KILLS for k in killers) and time.monotonic() > began + SECONDS
        return 0 if enough else float("inf")
    writers = [threading.Thread(target=writer, args=(suite, n, ROWS // WRITERS, deadline, state))
               for n in range(WRITERS)]
    for thread in killers + [watcher] + writers:
        thread.start()
    for thread in writers:
        thread.join(900)
        assert not thread.is_alive(), f"writers are stuck; kills {[k.kills for k in killers]}"
    for killer in killers:
        killer.stop.set()
        killer.join(30)
        assert killer.error is None, killer.error
    watcher.stop.set()
    watcher.join(30)
    stop_publishing.set()
    suite.wait_up()
    elapsed = time.monotonic() - began

    final = dict(suite.sql("SELECT id, v FROM storm"))
    want = sum(final.values())
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    wait_until("everything is acknowledged", lambda: suite.sql(
        "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots", lsn)[0][0], 240, 0.5)
    events = [(e["new"]["id"], e["op"], e["new"]["v"]) for e in sub.payloads()]
    duplicates = check_changes(events, final, ROWS)

    for p in publishers:
        p.thread.join(30)
        wait_until("every publish is acknowledged", lambda p=p: p.collect() == 0, 60)
        p.client.disconnect()
        p.client.loop_stop()
        assert p.disconnects == 0
    stored = Counter(r[0] for r in suite.sql(
        "SELECT convert_from(payload, 'UTF8') FROM howdah_mqtt.message WHERE topic LIKE 'storm/%'"))
    acked = set().union(*(p.acked for p in publishers))
    lost = [m for m in acked if m not in stored]
    assert not lost, f"{len(lost)} acknowledged messages are not in the table, first {lost[:5]}"
    twice = [m for m, n in stored.items() if n > 1]
    assert not twice, f"{len(twice)} messages stored more than once, first {twice[:5]}"
    assert len(acked) > 100
    report(f"storm: {elapsed:.0f} s, kills {[k.kills for k in killers]}, rows {len(final)}, changes {want}, "
           f"duplicates {duplicates}, publishes {len(acked)}, status samples {watcher.samples}")
    assert not watcher.wrong, watcher.wrong[:10]
    rows = suite.status()
    # Each kill is one restart; a worker may have restarted for its own reasons besides.
    assert rows["walstreamd"]["restarts"] >= killers[0].kills
    assert rows["postgres"]["restarts"] >= killers[1].kills
