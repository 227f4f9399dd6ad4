# SPDX-License-Identifier: PostgreSQL
"""
Several nodes on one database, clients on all of them, and everything on the way is killed, frozen, cut
and stalled. What the clients saw is linearizable (linear.py); watchers that are resumed wherever they
can be got every event once, in order (watch_check.py); a lease that is kept alive does not expire, one
that is not does, whoever owned it.

HOWDAH_WATCH_STORM_SECONDS and HOWDAH_WATCH_STORM_SEED change its length and repeat a run.
"""
import os
import random
import signal
import threading
import time

import psycopg2
import pytest

import linear
from etcd import CallError, Client, Etcd, Nodes, api, kinds, op
from suite import process_alive, wait_until
from watch_check import KeyHistory, StreamLog, Wanted, WatchLog

SECONDS = int(os.environ.get("HOWDAH_WATCH_STORM_SECONDS", 20))
SEED = int(os.environ.get("HOWDAH_WATCH_STORM_SEED", time.time_ns() % 1_000_000))
KEYS = [b"s/%d" % i for i in range(8)]
LEASE_SECONDS = 20      # longer than any fault and its end


class Worker(threading.Thread):
    """A thread of the storm; what it dies of fails the test."""

    def __init__(self, storm, name):
        super().__init__(daemon=True, name=name)
        self.storm = storm
        self.rnd = random.Random(f"{SEED} {name}")
        self.error = None

    def run(self):
        try:
            self.work()
        except Exception as e:     # told by the main thread
            self.error = f"{self.name}: {type(e).__name__}: {e}"

    @property
    def stopping(self):
        return self.storm.stop.is_set()


class Caller(Worker):
    """Random calls, one after the other, on a node that it changes now and then."""

    def __init__(self, storm, n):
        super().__init__(storm, f"caller {n}")
        self.n, self.written = n, 0

    def work(self):
        clients = [Client(node.endpoint, timeout=4) for node in self.storm.nodes]
        at = self.n % len(clients)
        while not self.stopping:
            if self.rnd.random() < 0.02:
                at = self.rnd.randrange(len(clients))
            if not self.call(clients[at], self.storm.nodes[at].endpoint):
                at = (at + 1) % len(clients)
                self.storm.stop.wait(0.05)
        for client in clients:
            client.close()

    def put(self, key):
        self.written += 1
        return op(api.PutRequest(key=key, value=b"%d.%d" % (self.n, self.written), prev_kv=True))

    def call(self, client, node):
        """One call; false: it was not answered."""
        what, key = self.rnd.random(), self.rnd.choice(KEYS)
        record = self.storm.recorder
        if what < 0.25:
            return record.get(client, node, key) is not None
        if what < 0.35:
            return record.get(client, node, b"s/", b"s0") is not None
        if what < 0.42:
            return record.get(client, node, b"s/", b"s0", serializable=True) is not None
        if what < 0.45:
            return self.read_the_past(client, node)
        if what < 0.65:
            txn = api.TxnRequest(success=[self.put(key)])
        elif what < 0.75:
            end = self.rnd.choice([b"", b"", b"", b"s/3"])
            txn = api.TxnRequest(success=[op(api.DeleteRangeRequest(key=key, range_end=end, prev_kv=True))])
        else:
            txn = self.compare_and_put(key, client, node)
        return txn is not None and record.call(client, node, txn) is not None

    def read_the_past(self, client, node):
        now = self.storm.recorder.get(client, node, b"s/", b"s0", limit=1)
        if now is None:
            return False
        revision = max(self.storm.base, now.header.revision - self.rnd.choice([1, 5, 50]))
        return self.storm.recorder.get(client, node, b"s/", b"s0", revision=revision) is not None

    def compare_and_put(self, key, client, node):
        """What locks and counters do: read, then write if nothing has come between."""
        seen = self.storm.recorder.get(client, node, key)
        if seen is None:
            return None
        revision = seen.kvs[0].mod_revision if seen.kvs else 0
        compare = api.Compare(key=key, target=api.Compare.MOD, result=api.Compare.EQUAL, mod_revision=revision)
        others = [self.put(k) for k in self.rnd.sample(KEYS, self.rnd.choice([0, 1, 3])) if k != key]
        return api.TxnRequest(compare=[compare], success=[self.put(key), *others],
                              failure=[op(api.RangeRequest(key=key))])


class Follower(Worker):
    """A watcher that is resumed, on this node or another, whenever its stream ends."""

    def __init__(self, storm, n, wanted):
        super().__init__(storm, f"follower {n}")
        self.log = WatchLog(wanted, self.name)
        self.at, self.resumed = n % len(storm.nodes), 0
        self.target = None      # the revision that has to come before it may end

    def work(self):
        while not self.finished():
            client = Client(self.storm.nodes[self.at].endpoint)
            try:
                self.follow(client.watch())
            finally:
                client.close()
            if self.rnd.random() < 0.5:
                self.at = self.rnd.randrange(len(self.storm.nodes))
            self.log.resumed()
            self.resumed += 1
            time.sleep(0.05)

    def finished(self):
        """A progress answer tells that there is no more up to the target."""
        return self.target is not None and max(self.log.promised, self.log.last) >= self.target

    def follow(self, stream):
        """Until the stream ends, or is left for another on a whim."""
        channel, taken = StreamLog(), 0
        channel.expect(self.log)
        wanted = self.log.wanted
        stream.create(wait=False, key=wanted.key, range_end=wanted.end, start_revision=wanted.start,
                      filters=wanted.filters, prev_kv=wanted.prev_kv, fragment=wanted.fragment)
        leave = time.monotonic() + self.rnd.expovariate(1 / 10)
        asked = time.monotonic()
        while not self.finished():
            if time.monotonic() > leave and not self.log.in_fragment:
                return
            if self.target and time.monotonic() > asked + 0.2:
                stream.progress()
                asked = time.monotonic()
            with stream.changed:
                if len(stream.answers) == taken and not stream.ended:
                    stream.changed.wait(0.1)
                answers, ended = stream.answers[taken:], stream.ended
            for answer in answers:
                channel.take(answer)
                assert not answer.canceled, f"canceled: {linear.text(answer)}"
            taken += len(answers)
            if ended and not answers:
                return


class Keeper(Worker):
    """A lease with a key, kept alive through any node that answers."""

    def __init__(self, storm, n):
        super().__init__(storm, f"keeper {n}")
        self.key = b"lease/%d" % n
        self.kept = 0
        self.longest = 0        # without an answer

    def work(self):
        clients = [Client(node.endpoint) for node in self.storm.nodes]
        lease = clients[0].call("LeaseGrant", TTL=LEASE_SECONDS).ID
        self.storm.recorder.call(clients[0], self.storm.nodes[0].endpoint, api.TxnRequest(success=[
            op(api.PutRequest(key=self.key, value=self.key, lease=lease))]))
        answered = time.monotonic()
        while not self.storm.over.wait(0.3):
            client = self.rnd.choice(clients)
            asked = time.monotonic()
            try:
                ttl = client.keep_alive_once(lease, 2)
            except (AssertionError, CallError):
                continue
            self.longest = max(self.longest, asked - answered)
            assert ttl == LEASE_SECONDS, f"the lease is gone {asked - answered:.1f} s after the last keepalive"
            answered = asked
            self.kept += 1
        for client in clients:
            client.close()


class Compactor(Worker):
    """Compacts, on any node, at what was new ten seconds ago: nobody who watches is so far behind."""

    def work(self):
        clients = [Client(node.endpoint, timeout=4) for node in self.storm.nodes]
        past = []
        while not self.storm.stop.wait(1):
            try:
                past.append(self.rnd.choice(clients).revision())
                if len(past) > 20:
                    self.rnd.choice(clients).call("Compact", revision=past.pop(0))
            except CallError as e:
                assert e.unknown or "compacted" in e.details, str(e)
        for client in clients:
            client.close()


class Storm:
    """Workers on nodes (anything with an endpoint); faults: name -> what does it."""

    def __init__(self, nodes, faults, seconds):
        self.nodes, self.faults, self.seconds = nodes, faults, seconds
        self.stop, self.over = threading.Event(), threading.Event()
        self.recorder = linear.Recorder()
        self.counts = dict.fromkeys(faults, 0)

    def run(self, report):
        base = self.base = self.nodes[0].client().revision()
        callers = [Caller(self, n) for n in range(4 * len(self.nodes))]
        wishes = [Wanted(b"s/", b"s0", prev_kv=True), Wanted(b"s/1", prev_kv=True), Wanted(b"\0", b"\0"),
                  Wanted(b"s/", b"s0", filters=[0]), Wanted(b"s/2", b"s/5", filters=[1], fragment=True)]
        followers = [Follower(self, n, w) for n, w in enumerate(wishes)]
        for f in followers:
            f.log.wanted.start = base + 1
        keepers = [Keeper(self, n) for n in range(3)]
        compactor = Compactor(self, "compactor")
        workers = [*callers, *followers, *keepers, compactor]
        for worker in workers:
            worker.start()
        self.disturb(workers)
        self.stop.set()
        self.join([*callers, compactor])
        self.heal()
        last = max(node.client().revision() for node in self.nodes)
        for f in followers:
            f.target = last
        self.join(followers)
        # One that followed everything tells the truth; linear.py sees whether there is a hole in it.
        truth = [e for e in followers[2].log.events if e.kv.mod_revision <= last]
        self.compare_nodes(truth)
        self.over.set()
        self.join(keepers)
        self.check(base, truth, followers)
        ops = self.recorder
        report(f"watch storm: seed {SEED}, {len(self.nodes)} nodes, {self.seconds} s, calls {len(ops.ops)} ("
               f"unknown {ops.count('unknown')}), revisions {truth[-1].kv.mod_revision - base}, faults {self.counts},"
               f" watches resumed {sum(f.resumed for f in followers)}, keepalives {sum(k.kept for k in keepers)},"
               f" longest wait for one {max(k.longest for k in keepers):.1f} s")
        assert ops.count("ok") > 20 * self.seconds, "hardly anything was answered"

    def disturb(self, workers):
        rnd = random.Random(SEED)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            assert not any(w.error for w in workers), [w.error for w in workers if w.error]
            self.stop.wait(rnd.uniform(0.3, 2.5))
            name = rnd.choice(list(self.faults))
            if self.faults[name](rnd):
                self.counts[name] += 1

    def join(self, workers):
        for worker in workers:
            worker.join(90)
            assert not worker.is_alive(), f"{worker.name} does not end"
        assert not any(w.error for w in workers), [w.error for w in workers if w.error]

    def heal(self):
        for node in self.nodes:
            node.wait_ready(120)

    def compare_nodes(self, truth):
        """Every node tells the same story, as far back as it goes, and hashes to the same."""
        last = truth[-1].kv.mod_revision
        hashes = [node.client().call("HashKV", revision=last) for node in self.nodes]
        start = max(self.base, *(h.compact_revision for h in hashes)) + 1
        expected = [e for e in truth if e.kv.mod_revision >= start]
        for node in self.nodes:
            watch = node.client().watch()
            watch.create(b"\0", b"\0", start_revision=start)
            told = watch.wait_events(len(expected), timeout=60)[:len(expected)]
            assert told == expected, f"{node.endpoint} tells another story"
            watch.close()
        assert len({(h.hash, h.compact_revision) for h in hashes}) == 1, hashes

    def check(self, base, truth, followers):
        linear.check(self.recorder.ops, truth, base)
        history = KeyHistory()
        for event in truth:
            history.take(event)
        for f in followers:
            history.check(f.log, truth[-1].kv.mod_revision)


# -- the nodes ------------------------------------------------------------------------------------------

class FaultyNodes(Nodes):
    """Each fault says whether it happened."""

    def __init__(self, count):
        super().__init__(count)
        self.faults = {"watchd": self.kill_watchd, "walstreamd": self.kill_walstreamd, "postgres": self.restart,
                       "freeze": self.freeze, "cut": self.cut, "stall": self.stall}

    def kill(self, rnd, worker):
        try:
            rnd.choice(self.nodes).suite.kill(worker)
            return True
        except (AssertionError, ProcessLookupError):
            return False    # it is dead already

    def kill_watchd(self, rnd):
        return self.kill(rnd, "watchd")

    def kill_walstreamd(self, rnd):
        return self.kill(rnd, "walstreamd")

    def restart(self, rnd):
        if rnd.random() < 0.5:
            return False    # it harms everybody: less often
        self.pg.stop(signal.SIGQUIT)
        self.pg.start()
        return True

    def freeze(self, rnd):
        proxy = rnd.choice(self.proxies)
        proxy.freeze()
        time.sleep(rnd.choice([0.2, 1, 4, 8]))
        if rnd.random() < 0.5:
            proxy.cut()
        proxy.thaw()
        return True

    def cut(self, rnd):
        rnd.choice(self.proxies).cut()
        return True

    def stall(self, rnd):
        """A server process of some watchd stops for a while, whatever it is doing, and then goes on."""
        try:
            conn = self.pg.connect()
            cur = conn.cursor()
            cur.execute("SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%watchd%'"
                        " ORDER BY query LIKE '%INSERT%' DESC, random()")
            pids = [row[0] for row in cur.fetchall()][:rnd.choice([1, 2, 10])]
            conn.close()
        except psycopg2.Error:
            return False
        if not pids:
            return False
        pid = rnd.choice(pids)
        try:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rnd.choice([0.5, 2, 5]))
        except ProcessLookupError:
            return False
        finally:
            if process_alive(pid):
                os.kill(pid, signal.SIGCONT)
        return True


@pytest.mark.skipif("watchd" not in kinds(), reason="needs watchd")
@pytest.mark.parametrize("count", [2, 3])
def test_storm(count, report):
    nodes = FaultyNodes(count)
    try:
        Storm(nodes.nodes, nodes.faults, SECONDS).run(report)
        abandoned_lease(nodes)
    finally:
        nodes.close()


def abandoned_lease(nodes):
    """Its owner is killed, and nobody keeps it alive: another node adopts it, and it expires."""
    first, second = (node.client() for node in nodes.nodes[:2])
    lease = first.call("LeaseGrant", TTL=5).ID
    first.put(b"abandoned", lease=lease)
    began = time.monotonic()
    nodes.nodes[0].suite.kill("watchd")
    wait_until("it expires", lambda: second.get(b"abandoned").count == 0, 60)
    assert time.monotonic() - began >= 5


def test_the_storm_itself(report):
    """An etcd that is killed and stopped passes; so the checks are not too strict."""
    etcd = Etcd()

    def kill(rnd):
        etcd.stop(signal.SIGKILL)
        etcd.start()
        return True

    def pause(rnd):
        etcd.process.send_signal(signal.SIGSTOP)
        time.sleep(rnd.choice([0.1, 1]))
        etcd.process.send_signal(signal.SIGCONT)
        return True
    try:
        Storm([etcd], {"kill": kill, "pause": pause}, min(SECONDS, 8)).run(report)
    finally:
        etcd.close()
