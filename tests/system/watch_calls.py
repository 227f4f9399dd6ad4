# SPDX-License-Identifier: PostgreSQL
"""
Random calls of the etcd API, for the differential test: a generator that knows what the reference has
answered so far, and makes the next step such that keys collide, revisions are past, future or compacted,
leases are alive, revoked or unknown.

A step holds markers where a number depends on the run: a step taken out of the list (to make a failing
story short) leaves the others their meaning. Left out, since etcd 3.4 is no reference for it: a sort
target or order that does not exist (its server dies), a watch from exactly the compacted revision if that
is a deletion (it may be lost there). The runner makes a watch from a negative revision one from now until
something above revision 0 was compacted (see Side.do_create; test_watch_semantics.py has these).
"""
import dataclasses
import os

from etcd import prefix_end

# At most twelve keys live at a time: up to there etcd's sort keeps the order of equal elements.
KEYS = [b"\0", b"a", b"a\0", b"aa", b"ab", b"b", b"b\xff", b"dir/1", b"dir/2", b"l" * 300, b"\xff", b"\xff\xff"]
VALUES = [b"", b"x", b"y", b"\0", b"\xff\0\xfe", b"long" * 500]
SLOTS = 3           # watch streams
WATCHERS = 8        # of one stream
FAR = 1 << 40       # a revision that never comes
# How often a damaged request is sent: only if asked for, since decoders may differ about those that are
# almost right (groups, fields of another wire type).
DAMAGED = int(os.environ.get("HOWDAH_WATCH_DIFF_DAMAGED", 0))
FIRST_REVISION = 1  # of an empty store


@dataclasses.dataclass(frozen=True)
class Rev:
    """The revision that step's answer said, plus delta."""
    step: int
    delta: int = 0

    def __repr__(self):
        return f"<revision of step {self.step}{self.delta:+d}>" if self.delta else f"<revision of step {self.step}>"


@dataclasses.dataclass(frozen=True)
class LeaseOf:
    """The lease that step was granted."""
    step: int

    def __repr__(self):
        return f"<lease of step {self.step}>"


@dataclasses.dataclass(frozen=True)
class WatchOf:
    """The watcher that step created."""
    step: int

    def __repr__(self):
        return f"<watch of step {self.step}>"


@dataclasses.dataclass
class Step:
    """do: "call", "raw", "create", "cancel", "progress", "close", "keepalive", "expire", "short"; name: the
    call's; slot: the stream's number."""
    n: int
    do: str
    name: str = ""
    slot: int = 0
    fields: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        where = f" stream {self.slot}" if self.do in ("create", "cancel", "progress", "close") else ""
        return f"{self.n:5}  {self.name or self.do}{where} {show(self.fields)}"

    def simpler(self):
        if self.do not in ("call", "create"):
            return ()
        return (dataclasses.replace(self, fields=fields) for fields in simpler(self.fields))


def show(value):
    """A request as one reads it: what is zero or empty is not said."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}={show(v)}" for k, v in value.items() if v or isinstance(v, (dict, list))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:8]!r}...({len(value)} bytes)"
    return repr(value)


def simpler(value):
    """value with one of its parts left out, in every way."""
    if isinstance(value, dict):
        for k in value:
            yield {other: v for other, v in value.items() if other != k}
            for v in simpler(value[k]):
                yield {**value, k: v}
    if isinstance(value, list):
        for i in range(len(value)):
            yield value[:i] + value[i + 1:]
            for v in simpler(value[i]):
                yield value[:i] + [v] + value[i + 1:]


def filled(value, resolve):
    """value with every marker replaced by what resolve makes of it."""
    if isinstance(value, dict):
        return {k: filled(v, resolve) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, resolve) for v in value]
    if isinstance(value, (Rev, LeaseOf, WatchOf)):
        return resolve(value)
    return value


class Generator:
    """Steps from a random source. The runner tells by done() what became of each."""

    def __init__(self, rnd):
        self.rnd = rnd
        self.n = 0
        self.unique = 0
        self.revision = FIRST_REVISION
        self.compacted = 0
        self.compacted_at_put = True
        self.ignoring = True            # puts may have ignore_value and ignore_lease
        self.leasing = True
        self.puts = []                  # steps that did nothing but put
        self.leases = []                # LeaseOf of those alive
        self.watchers = [[] for _ in range(SLOTS)]
        self.makers = [
            (22, self.put), (24, self.range), (8, self.delete), (22, self.txn), (4, self.grant),
            (1.5, self.revoke), (3, self.timetolive), (0.7, self.leases_list), (2, self.keepalive),
            (1.5, self.compact), (5, self.create), (2, self.cancel), (1, self.progress), (0.4, self.close),
            (0.5, self.hashkv), (0.3, self.alarm), (0.05, self.expire), (0.3, self.short),
            (0.1, self.too_large), (DAMAGED, self.raw)]

    def step(self):
        self.n += 1
        maker = self.rnd.choices([m for _, m in self.makers], [w for w, _ in self.makers])[0]
        step = maker()
        return step

    def call(self, name, **fields):
        return Step(self.n, "call", name, 0, {k: v for k, v in fields.items() if v not in (0, b"", False, [])})

    def maybe(self, chance):
        return self.rnd.random() < chance

    # -- pieces -----------------------------------------------------------------------------------

    def key(self):
        return b"" if self.maybe(0.01) else self.rnd.choice(KEYS)

    def value(self):
        if self.maybe(0.4):
            return self.rnd.choice(VALUES)
        self.unique += 1
        return b"v%d" % self.unique

    def key_range(self):
        """key and range_end."""
        key = self.key()
        end = self.rnd.choice([b"", b"", b"\0", prefix_end(key or b"a"), self.key(), key + b"\0", b"b", b"\xff"])
        if self.maybe(0.1):
            return b"\0", b"\0"
        return key, end

    def past(self):
        return Rev(max(0, self.n - 1 - int(self.rnd.expovariate(1 / 40))), self.rnd.choice([0, 0, 0, -1, 1]))

    def rev(self):
        """A revision of any kind."""
        return self.rnd.choice([self.past, self.past, self.past, lambda: Rev(self.n - 1),
                                lambda: Rev(self.n - 1, 1), lambda: Rev(0, self.rnd.randrange(30)),
                                lambda: FAR, lambda: -1])()

    def lease(self):
        """0 mostly, or a lease that is alive, or one that is not."""
        if self.maybe(0.7) or not self.leasing:
            return 0
        if self.leases and self.maybe(0.9):
            return self.rnd.choice(self.leases)
        return 999

    # -- key-value --------------------------------------------------------------------------------

    def put_fields(self, key=None):
        fields = {"key": self.key() if key is None else key, "value": self.value(), "lease": self.lease(),
                  "prev_kv": self.maybe(0.3)}
        if self.ignoring and self.maybe(0.1):
            fields.update(ignore_value=True, value=b"" if self.maybe(0.8) else b"not empty")
        if self.ignoring and self.maybe(0.1):
            fields.update(ignore_lease=True, lease=0 if self.maybe(0.8) else 1)
        return fields

    def range_fields(self):
        key, end = self.key_range()
        fields = {"key": key, "range_end": end, "serializable": self.maybe(0.3),
                  "limit": self.rnd.choice([0, 0, 0, 1, 2, 3, 5, 100, -1]),
                  "revision": self.rev() if self.maybe(0.3) else 0}
        if self.maybe(0.4):
            fields.update(sort_order=self.rnd.randrange(3), sort_target=self.rnd.randrange(5))
        for name in ("keys_only", "count_only"):
            fields[name] = self.maybe(0.12)
        for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
            if self.maybe(0.08):
                fields[name] = self.rev()
        return fields

    def delete_fields(self):
        key, end = self.key_range()
        if self.maybe(0.5):
            end = b""
        return {"key": key, "range_end": end, "prev_kv": self.maybe(0.4)}

    def put(self):
        self.ignoring = True
        return self.call("Put", **self.put_fields())

    def range(self):
        return self.call("Range", **self.range_fields())

    def delete(self):
        return self.call("DeleteRange", **self.delete_fields())

    def too_large(self):
        size = self.rnd.choice([1_500_000, 1_572_864 - 100, 1_572_864, 1_600_000])
        return self.call("Put", key=b"a", value=b"L" * size)

    def raw(self):
        """A request that the way has damaged."""
        self.ignoring = self.leasing = False    # the bytes must be the same on both sides
        name, fields = self.rnd.choice([
            ("Put", self.put_fields), ("Range", self.range_fields), ("DeleteRange", self.delete_fields),
            ("Txn", lambda: self.txn_fields(list(KEYS), 1))])
        damage = (self.rnd.randrange(1 << 16), self.rnd.randrange(4), self.rnd.randrange(256))
        step = Step(self.n, "raw", name, fields={**fields(), "damage": damage})
        self.leasing = True
        return step

    def compare(self):
        key, end = self.key(), b""
        if self.maybe(0.25):
            key, end = self.key_range()
        target = self.rnd.randrange(5)
        field = ["version", "create_revision", "mod_revision", "value", "lease"][target]
        number = self.rnd.choice([0, 0, 1, 2, 3])
        value = {"version": number, "create_revision": self.rnd.choice([0, self.past()]),
                 "mod_revision": self.rnd.choice([0, self.past()]), "value": self.value(),
                 "lease": self.rnd.choice([0, self.lease()])}
        if self.maybe(0.03):    # one target, another's value
            field = self.rnd.choice(list(value))
        fields = {"key": key, "range_end": end, "target": target, "result": self.rnd.randrange(4)}
        if isinstance(value["lease"], LeaseOf):     # which of two is greater is the server's choice
            fields["result"] = self.rnd.choice([0, 3])
        if self.maybe(0.97):
            fields[field] = value[field]
        return fields

    def ops(self, keys, depth):
        return [self.op(keys, depth) for _ in range(self.rnd.choice([0, 1, 1, 1, 2, 2, 3, 4]))]

    def op(self, keys, depth):
        """An operation; keys: those that this Txn has not put yet, so that most Txns are legal."""
        what = self.rnd.random()
        if what < 0.4:
            key = keys.pop(self.rnd.randrange(len(keys))) if keys and self.maybe(0.97) else None
            return {"request_put": self.put_fields(key)}
        if what < 0.65:
            return {"request_range": self.range_fields()}
        if what < 0.8 and not self.ignoring:
            if keys and self.maybe(0.9):
                return {"request_delete_range": {"key": keys.pop(self.rnd.randrange(len(keys))),
                                                 "prev_kv": self.maybe(0.4)}}
            return {"request_delete_range": self.delete_fields()}
        if what < 0.99 and depth < 3:
            return {"request_txn": self.txn_fields(keys, depth + 1)}
        return {} if self.maybe(0.2) else {"request_range": self.range_fields()}

    def txn_fields(self, keys, depth):
        return {"compare": [self.compare() for _ in range(self.rnd.choice([0, 0, 1, 1, 1, 2, 3]))],
                "success": self.ops(keys, depth), "failure": self.ops(keys, depth)}

    def txn(self):
        if self.maybe(0.01):
            n = self.rnd.choice([127, 128, 129])
            return self.call("Txn", **{self.rnd.choice(["success", "failure"]): [
                {"request_range": {"key": b"a"}} for _ in range(n)]})
        if self.maybe(0.01):
            return self.call("Txn", compare=[{"key": b"a"} for _ in range(self.rnd.choice([128, 129]))])
        # etcd dies of a put that ignores what an operation of the same Txn has deleted, where its check for
        # overlaps has a hole: no deletions beside such puts.
        self.ignoring = self.maybe(0.3)
        # Some care for nothing, so that their writes overlap.
        return self.call("Txn", **self.txn_fields(list(KEYS) if self.maybe(0.85) else [], 0))

    # -- leases -----------------------------------------------------------------------------------

    def grant(self):
        ttl = self.rnd.choice([1000, 5000, 100000, 9_000_000_000, 9_000_000_001])
        chosen = self.rnd.choice([0, 0, 1, 2, 3, -7, (1 << 63) - 1])
        return self.call("LeaseGrant", TTL=ttl, ID=chosen)

    def some_lease(self):
        if self.leases and self.maybe(0.9):
            return self.rnd.choice(self.leases)
        return self.rnd.choice([0, 999, -1])

    def revoke(self):
        return self.call("LeaseRevoke", ID=self.some_lease())

    def timetolive(self):
        return self.call("LeaseTimeToLive", ID=self.some_lease(), keys=self.maybe(0.6))

    def leases_list(self):
        return self.call("LeaseLeases")

    def keepalive(self):
        return Step(self.n, "keepalive", fields={"ID": self.some_lease()})

    def expire(self):
        """A lease with keys, of the shortest time there is, until it is over."""
        return Step(self.n, "expire", fields={"keys": self.rnd.sample(KEYS, self.rnd.choice([0, 1, 3]))})

    def short(self):
        """A grant of less than the shortest time, revoked at once."""
        return Step(self.n, "short", fields={"TTL": self.rnd.choice([-5, 0, 1, 2])})

    # -- the rest ---------------------------------------------------------------------------------

    def compact(self):
        safe = [p for p in self.puts if p > self.n - 300]
        if safe and self.maybe(0.5):
            return self.call("Compact", revision=Rev(self.rnd.choice(safe)), physical=self.maybe(0.5))
        return self.call("Compact", revision=self.rnd.choice([self.past(), self.past(), self.rev(), 0]),
                         physical=self.maybe(0.5))

    def hashkv(self):
        return self.call("HashKV", revision=self.rnd.choice([0, self.rev()]))

    def alarm(self):
        return self.call("Alarm")

    def create(self):
        slot = self.rnd.randrange(SLOTS)
        if len(self.watchers[slot]) >= WATCHERS:
            return self.cancel()
        key, end = self.key_range()
        fields = {"key": key, "range_end": end, "prev_kv": self.maybe(0.5), "fragment": self.maybe(0.3),
                  "progress_notify": self.maybe(0.3),
                  "filters": self.rnd.choice([[], [], [], [0], [1], [0, 1], [1, 1]]),
                  "watch_id": self.rnd.choice([0, 0, 0, 1, 2, 7, 1 << 40])}
        if self.maybe(0.5):
            fields["start_revision"] = self.rnd.choice([
                self.past, self.past, lambda: Rev(self.n - 1, self.rnd.choice([0, 1, 2, 5])),
                lambda: Rev(0, self.rnd.randrange(1, 30)), lambda: self.rnd.choice([-1, -2])])()
        return Step(self.n, "create", slot=slot, fields={k: v for k, v in fields.items() if v not in (0, False, [])})

    def cancel(self):
        slot = self.rnd.randrange(SLOTS)
        known = self.watchers[slot]
        chosen = self.rnd.choice(known) if known and self.maybe(0.85) else self.rnd.choice([-1, 55])
        return Step(self.n, "cancel", slot=slot, fields={"watch_id": chosen})

    def progress(self):
        return Step(self.n, "progress", slot=self.rnd.randrange(SLOTS))

    def close(self):
        return Step(self.n, "close", slot=self.rnd.randrange(SLOTS))

    # -- what became of it ------------------------------------------------------------------------

    def done(self, step, answer, revision):
        """answer: the reference's, or None if it was an error; revision: the store's, by now."""
        grew = revision > self.revision
        self.revision = revision
        if answer is None:
            return
        if step.name == "Put" and grew:
            self.puts.append(step.n)
        elif step.name == "LeaseGrant":
            self.leases.append(LeaseOf(step.n))
        elif step.name == "LeaseRevoke":
            self.leases = [one for one in self.leases if one != step.fields.get("ID")]
        elif step.do == "create" and not answer.canceled:
            self.watchers[step.slot].append(WatchOf(step.n))
        elif step.do == "cancel":
            self.watchers[step.slot] = [w for w in self.watchers[step.slot] if w != step.fields["watch_id"]]
        elif step.do == "close":
            self.watchers[step.slot] = []

