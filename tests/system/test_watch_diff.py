# SPDX-License-Identifier: PostgreSQL
"""
The differential test: the same random calls go to Debian's etcd and to watchd, one after the other; the
answers are compared field by field, the watchers' histories revision by revision. A difference is
reduced to the fewest steps that show it, and printed.

Not compared: cluster and member ids and raft's fields (only that they are there or not), hashes, sizes.
Lease ids that a server chose are compared by who was granted them, a remaining time to live to a second.
Revisions count from the start of a round: a round of ROUND steps begins with an empty store.

HOWDAH_WATCH_DIFF_SEED and HOWDAH_WATCH_DIFF_SECONDS repeat a run and change its length;
HOWDAH_WATCH_DIFF_DAMAGED=3 mixes damaged requests in.
"""
import os
import random
import re
import time
import warnings

import pytest
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from etcd import UNARY, CallError, Etcd, api, kinds, serve
from suite import wait_until
from watch_calls import FIRST_REVISION, KEYS, Generator, LeaseOf, Rev, Step, filled
from watch_check import KeyHistory, StreamLog, Wanted, WatchLog, facts

SECONDS = int(os.environ.get("HOWDAH_WATCH_DIFF_SECONDS", 60))
SEED = int(os.environ.get("HOWDAH_WATCH_DIFF_SEED", time.time_ns() % 1_000_000))
ROUND = 1500
SHRINK_SECONDS = 120

REVISIONS = ("revision", "create_revision", "mod_revision", "compact_revision")
PRESENT = ("cluster_id", "member_id", "raft_term", "memberID")
MASKED = ("hash",)


# How long an event or an answer may take; less while a story is made shorter.
patience = {"seconds": 10}


class Near(int):
    """A number of seconds that two servers counted."""

    def __eq__(self, other):
        return abs(int(self) - int(other)) <= 1

    __hash__ = None


class Watcher:
    """One watcher, and what it must get by the witness's account."""

    def __init__(self, step, fields, compacted):
        self.log = WatchLog(Wanted(**fields), f"watch of step {step}")
        self.compacted = compacted
        self.cursor, self.expected, self.compared = 0, [], 0

    def follow(self, truth):
        for event, _ in truth.events[self.cursor:]:
            if self.log.wanted.event(event) and event.kv.mod_revision >= self.log.first:
                self.expected.append(facts(event))
        self.cursor = len(truth.events)


def odd(message):
    """Has a field of the wrong wire type, which one decoder refuses and another passes over."""
    known = message.DESCRIPTOR.fields_by_number
    if any(unknown.field_number in known for unknown in message.UnknownFields()):
        return True
    inner = [v for f, v in message.ListFields() if f.message_type]
    return any(odd(one) for v in inner for one in (v if hasattr(v, "add") else [v]))


def damaged(name, fields):
    """A request with a byte changed, put in or left out, or all of it gone, as fields["damage"] says. Left
    whole are those that etcd would die of, or that decoders may differ about (to etcd's, a range_end that
    is there and empty means "to the end")."""
    fields = dict(fields)
    at, what, byte = fields.pop("damage")
    kind = getattr(api, UNARY[name][1])
    good = kind(**fields).SerializeToString()
    at %= len(good) or 1
    bad = good[:at] + [bytes([byte]) + good[at + 1:], bytes([byte]) + good[at:], good[at + 1:], b""][what]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = kind.FromString(bad)
    except DecodeError:
        return bad
    text = text_format.MessageToString(message)
    deadly = any(int(n) > 4 or int(n) < 0 for n in re.findall(r"sort_target: (-?\d+)", text)) or "ignore_" in text
    ends = text_format.MessageToString(kind.FromString(good)).count("range_end")
    doubtful = odd(message) or text.count("range_end") < ends or b"\x12\0" in bad
    return good if deadly or doubtful else bad


class Channel:
    """A watch stream and its watchers. Answers are checked in the order of their arrival."""

    def __init__(self, stream):
        self.stream, self.log, self.taken = stream, StreamLog(), 0
        self.watchers = {}

    def take(self):
        answers = self.stream.snapshot()
        for answer in answers[self.taken:]:
            self.log.take(answer)
        self.taken = len(answers)

    def wait(self, what, condition):
        def satisfied(answers):
            self.take()
            return condition()
        return self.stream.wait(what, satisfied, patience["seconds"])

    def sync(self, truth):
        for w in self.watchers.values():
            if w.compacted:
                self.wait(f"{w.log.name} is canceled, its start being compacted", lambda: w.log.canceled)
                continue
            w.follow(truth)
            self.wait(f"{w.log.name} has {len(w.expected)} events", lambda: len(w.log.events) >= len(w.expected))
            got = [facts(e) for e in w.log.events[w.compared:]]
            assert got == w.expected[w.compared:], f"{w.log.name} got {got}, not {w.expected[w.compared:]}"
            w.compared = len(w.expected)


class Side:
    """One server, and what the run has learnt from it."""

    def __init__(self, name, endpoint):
        self.name, self.endpoint = name, endpoint
        self.client = endpoint.client(timeout=20)
        self.keepalives = None
        self.channels, self.witness = {}, None

    def reset(self):
        """An empty store; what comes counts from here."""
        self.close_streams()
        for lease in self.client.call("LeaseLeases").leases:
            self.client.call("LeaseRevoke", ID=lease.ID)
        self.client.delete(b"\0", b"\0")
        self.base = self.revision = self.client.revision()
        if self.base > FIRST_REVISION:
            try:
                self.client.call("Compact", revision=self.base)
            except CallError as e:
                assert "compacted" in e.details
        self.compacted = self.base if self.base > FIRST_REVISION else 0
        self.after, self.lease_ids, self.lease_names, self.watch_ids = {0: self.base}, {}, {}, {}
        self.witness = self.client.watch()
        self.witness.create(b"\0", b"\0", start_revision=self.base + 1)
        self.truth, self.seen, self.unsettled = KeyHistory(), 0, False

    def close_streams(self):
        for stream in [*(c.stream for c in self.channels.values()), self.witness, self.keepalives]:
            if stream:
                stream.close()
                self.client.streams.remove(stream)
        self.channels, self.witness, self.keepalives = {}, None, None

    # -- markers and masks --------------------------------------------------------------------------

    def resolve(self, marker):
        if isinstance(marker, Rev):
            # A step that was taken out: the last one before it that is there.
            return self.after[max(s for s in self.after if s <= marker.step)] + marker.delta
        if isinstance(marker, LeaseOf):
            return self.lease_ids.get(marker.step, 998)
        return self.watch_ids.get(marker.step, 997)

    def plain(self, message):
        """A message as nested dictionaries, with what may differ replaced."""
        out = {}
        for field, value in message.ListFields():
            name = field.name
            if field.label == field.LABEL_REPEATED:
                out[name] = [self.plain(v) if field.message_type else v for v in value]
            elif field.message_type:
                out[name] = self.plain(value)
            elif name in REVISIONS:
                out[name] = value if value <= 0 else max(value - self.base + FIRST_REVISION, 0)
            elif name in MASKED:
                continue
            elif name in PRESENT:
                out[name] = "set"
            elif name in ("lease", "ID"):
                out[name] = self.lease_names.get(value, value)
            else:
                out[name] = value
        if message.DESCRIPTOR.name == "LeaseTimeToLiveResponse":
            out["keys"] = sorted(message.keys)
            out["TTL"] = Near(message.TTL)
        if message.DESCRIPTOR.name == "LeaseLeasesResponse":
            out["leases"] = sorted(str(o["ID"]) for o in out.get("leases", []))
        return out

    # -- steps ----------------------------------------------------------------------------------------

    def run(self, step):
        """Does a step; (the answer or None if it was an error, what is compared of it)."""
        try:
            answer, seen = getattr(self, f"do_{step.do}")(step, filled(step.fields, self.resolve))
        except CallError as e:
            answer, seen = None, str(e)
            if ": grpc: error unmarshalling request" in seen:   # what it is exactly, says each in its words
                seen = seen[:seen.index(" request")]
        self.after[step.n] = self.revision
        return answer, seen

    def call(self, name, **fields):
        answer = self.client.call(name, **fields)
        self.revision = max(self.revision, answer.header.revision)
        return answer

    def do_call(self, step, fields):
        if step.name == "Compact":
            self.settle()     # watchers have passed what will be gone
        answer = self.call(step.name, **fields)
        if step.name == "Compact":
            self.compacted = max(self.compacted, fields.get("revision", 0))
        if step.name == "LeaseGrant":
            self.lease_ids[step.n] = answer.ID
            self.lease_names[answer.ID] = f"lease of step {step.n}"
        return answer, self.plain(answer)

    def do_keepalive(self, step, fields):
        if not self.keepalives or self.keepalives.ended:
            self.keepalives = self.client.keepalive()
        n = len(self.keepalives.answers)
        self.keepalives.send(api.LeaseKeepAliveRequest(**fields))
        answer = self.keepalives.wait("keepalive is answered", lambda answers: answers[n:])[0]
        return answer, self.plain(answer)

    def do_short(self, step, fields):
        granted = self.call("LeaseGrant", **fields)
        self.lease_names[granted.ID] = f"lease of step {step.n}"
        return granted, [self.plain(granted), self.plain(self.call("LeaseRevoke", ID=granted.ID))]

    def do_expire(self, step, fields):
        granted = self.call("LeaseGrant", TTL=1)
        self.lease_names[granted.ID] = f"lease of step {step.n}"
        for key in fields["keys"]:
            self.call("Put", key=key, value=b"expires", lease=granted.ID)
        began = time.monotonic()
        wait_until("lease expires", lambda: self.call("LeaseTimeToLive", ID=granted.ID).TTL == -1, 20)
        assert time.monotonic() - began > granted.TTL - 0.5, f"{self.name}: a lease expired early"
        return granted, [self.plain(granted), self.plain(self.call("LeaseTimeToLive", ID=granted.ID))]

    # -- watches --------------------------------------------------------------------------------------

    def do_create(self, step, fields):
        start = fields.get("start_revision", 0)
        if start > 0:
            # A round knows nothing of what was before it, and etcd loses a deletion at the compacted revision.
            start = max(start, self.base + 1)
            fields["start_revision"] = start = start + 1 if start == self.compacted else start
            self.unsettled = True
        elif not self.compacted:
            # Until a compaction above 0, etcd 3.4 is no reference for a start below 0: -1 makes the read for all
            # watchers that it brings up to date together come out empty, and they lose their events (etcd's bug
            # 20693); after a compaction at 0 it forgets the watcher.
            fields["start_revision"] = start = 0
        if step.slot not in self.channels:
            self.channels[step.slot] = Channel(self.client.watch())
        channel = self.channels[step.slot]
        watcher = Watcher(step.n, fields, start != 0 and start < self.compacted)
        channel.log.expect(watcher.log)
        channel.stream.create(wait=False, **fields)
        channel.wait("created", lambda: watcher.log.created)
        answer = watcher.log.created
        self.watch_ids[step.n] = answer.watch_id
        if not answer.canceled:
            channel.watchers[answer.watch_id] = watcher
            if watcher.compacted:
                channel.wait("canceled", lambda: watcher.log.canceled)
        return answer, self.plain(answer)

    def do_cancel(self, step, fields):
        if step.slot not in self.channels:
            return None, None
        self.sync()
        channel, watch_id = self.channels[step.slot], fields["watch_id"]
        channel.stream.cancel(watch_id)
        watcher = channel.watchers.get(watch_id)
        if watcher is None:
            return None, None
        before = watcher.log.canceled
        watcher.log.asked = True
        channel.wait("canceled", lambda: watcher.log.canceled is not before)
        seen = [self.plain(watcher.log.canceled), self.histories(channel)]
        del channel.watchers[watch_id]
        return watcher.log.canceled, seen

    def do_raw(self, step, fields):
        """Bytes that are almost a message."""
        self.settle()
        answer = getattr(api, UNARY[step.name][1].replace("Request", "Response")).FromString(
            self.client.raw(f"/etcdserverpb.KV/{step.name}", damaged(step.name, fields)))
        self.revision = max(self.revision, answer.header.revision)
        for kv in self.call("Range", key=b"\0", range_end=b"\0", keys_only=True).kvs:
            if kv.key not in KEYS:      # see there
                self.call("DeleteRange", key=kv.key)
        return answer, self.plain(answer)

    def do_progress(self, step, fields):
        if step.slot not in self.channels:
            return None, None
        self.settle()
        channel = self.channels[step.slot]
        if any(w.log.first > self.revision + 1 for w in channel.watchers.values()):
            return None, None   # etcd 3.4 answers even so
        n = len(channel.stream.snapshot())
        channel.stream.progress()
        answer = channel.stream.wait("progress", lambda answers: [
            a for a in answers[n:] if a.watch_id == -1 and not a.created])[0]
        return answer, self.plain(answer)

    def do_close(self, step, fields):
        if step.slot not in self.channels:
            return None, None
        self.sync()
        channel = self.channels.pop(step.slot)
        self.client.streams.remove(channel.stream)
        channel.stream.close()
        return None, self.histories(channel)

    def settle(self):
        """Waits until a server has worked through the past of every watcher that began there, whether it
        had events or not: one more from the past comes after them."""
        self.sync()
        if self.unsettled and self.revision > max(self.base, self.compacted):
            probe = self.client.watch()
            probe.create(b"\0", b"\0", start_revision=self.revision)
            probe.wait_events(1)
            self.client.streams.remove(probe)
            probe.close()
        self.unsettled = False

    def sync(self):
        """Waits until every watcher has got what the witness says there is for it."""
        def caught_up(answers):
            return self.revision == self.base or (
                answers[-1].events and answers[-1].events[-1].kv.mod_revision >= self.revision)
        self.witness.wait(f"{self.name}: the witness sees revision {self.revision}", caught_up, patience["seconds"])
        answers = self.witness.snapshot()
        for answer in answers[self.seen:]:
            for event in answer.events:
                self.truth.take(event)
        self.seen = len(answers)
        for channel in self.channels.values():
            channel.sync(self.truth)

    def histories(self, channel):
        """What a stream's watchers got, to be compared with the other side's."""
        return [[self.plain(w.log.created), [self.plain(e) for e in w.log.events],
                 w.log.canceled and self.plain(w.log.canceled)] for w in channel.watchers.values()]

    def everything(self):
        """At the end of a round: every key, every lease, every watcher's history."""
        self.sync()
        kept = self.client.get(b"\0", b"\0")
        return [self.plain(kept), self.plain(self.client.call("LeaseLeases")),
                [self.histories(c) for _, c in sorted(self.channels.items(), key=lambda item: str(item[0]))]]


class Difference(Exception):
    def __init__(self, steps, seen):
        super().__init__("difference")
        self.steps, self.seen = steps, seen


END = Step(1 << 30, "everything")


def attempt(side, step):
    """What a step shows on a side; a violation or silence is shown too."""
    try:
        return side.run(step) if step is not END else (None, side.everything())
    except AssertionError as e:
        return None, f"FAILS: {e}"


def compare(sides, steps, done=None):
    """Runs steps on both sides up to the first difference. done(step, reference's answer) if given."""
    ran = []
    for step in steps:
        ran.append(step)
        results = [attempt(side, step) for side in sides]
        seen = [r[1] for r in results]
        if seen[0] != seen[1] or str(seen[0]).startswith("FAILS"):
            raise Difference(ran, seen)
        if done:
            done(step, results[0][0])


def one_round(sides, seed):
    """ROUND random steps from an empty store; how many of each kind."""
    for side in sides:
        side.reset()
    generator = Generator(random.Random(seed))
    counts = {}

    def steps(deadline):
        for _ in range(ROUND):
            if time.monotonic() > deadline:
                break
            step = generator.step()
            kind = step.name if step.do == "call" else step.do
            counts[kind] = counts.get(kind, 0) + 1
            yield step
        yield END

    def done(step, answer):
        if step is not END:
            generator.done(step, answer, sides[0].revision - sides[0].base + FIRST_REVISION)
            if answer is None and step.do == "call":
                counts["errors"] = counts.get("errors", 0) + 1
    compare(sides, steps(one_round.deadline), done)
    return counts


def differs(sides, steps):
    """The difference that steps show from an empty store, or None."""
    try:
        for side in sides:
            side.reset()
        compare(sides, steps)
    except Difference as d:
        return d
    return None


def without(sides, best, deadline):
    """best, with as many steps left out as can be: halves first, then less."""
    size = len(best.steps) // 2
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(best.steps) - 1 and time.monotonic() < deadline:
            again = differs(sides, best.steps[:at] + best.steps[at + size:])
            best, at = (again, at) if again else (best, at + size)
        size //= 2
    return best


def simplified(sides, best, deadline):
    """best, with as many parts of the requests left out as can be."""
    for i in range(len(best.steps) - 1, -1, -1):
        tried = True
        while tried and i < len(best.steps) and best.steps[i] is not END:
            tried = None
            for step in best.steps[i].simpler():
                if time.monotonic() > deadline:
                    return best
                tried = differs(sides, best.steps[:i] + [step] + best.steps[i + 1:])
                if tried:
                    best = tried
                    break
    return best


def shrink(sides, found):
    """The shortest story that still shows a difference, as far as SHRINK_SECONDS go."""
    deadline = time.monotonic() + SHRINK_SECONDS
    best, size = found, None
    while size != (size := len(best.steps)):
        best = without(sides, best, deadline)
    return without(sides, simplified(sides, best, deadline), deadline)


def difference_text(value, other):
    """The parts of two results that are not equal."""
    if isinstance(value, dict) and isinstance(other, dict):
        parts = [(k, value.get(k), other.get(k)) for k in {**value, **other} if value.get(k) != other.get(k)]
        return "; ".join(f"{k}: {difference_text(a, b)}" for k, a, b in parts)
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        return "; ".join(f"[{i}] {difference_text(a, b)}" for i, (a, b) in enumerate(zip(value, other)) if a != b)
    return f"{value!r} and {other!r}"


def story(sides, found, seed):
    lines = [f"{sides[0].name} and {sides[1].name} differ (HOWDAH_WATCH_DIFF_SEED={seed}):"]
    lines += [str(step) for step in found.steps]
    lines += [f"{side.name}: {seen}" for side, seen in zip(sides, found.seen)]
    lines.append(f"that is: {difference_text(*found.seen)}")
    return "\n".join(lines)


def run_diff(sides, seconds, report):
    one_round.deadline = time.monotonic() + seconds
    seed, total = SEED, {}
    patience["seconds"] = 10
    while time.monotonic() < one_round.deadline:
        try:
            counts = one_round(sides, seed)
        except Difference as found:
            patience["seconds"] = 2
            pytest.fail(story(sides, shrink(sides, found), seed), pytrace=False)
        for name, n in counts.items():
            total[name] = total.get(name, 0) + n
        seed += 1
    report(f"watch differential test: seeds {SEED} to {seed - 1}, {seconds} s, {total}")


class Liar(Side):
    """Says something wrong, and soon: for the tests of this test. (What is wrong only after a hundred steps
    is not made short in time on a busy machine.)"""

    def plain(self, message):
        out = super().plain(message)
        if message.DESCRIPTOR.name == "KeyValue" and message.version > 1:
            out["version"] += 1
        return out


@pytest.fixture
def two_etcds():
    servers = [Etcd(), Etcd()]
    yield servers
    for server in servers:
        server.close()


@pytest.mark.skipif("watchd" not in kinds(), reason="needs watchd")
def test_watchd_is_as_etcd(report):
    etcd = Etcd()
    watchd = serve("watchd")
    try:
        run_diff([Side("etcd", etcd), Side("watchd", watchd)], SECONDS, report)
    finally:
        etcd.close()
        watchd.close()


def test_equals_do_not_differ(two_etcds, report):
    one, other = two_etcds
    run_diff([Side("etcd", one), Side("etcd again", other)], min(SECONDS, 5), report)


def test_a_difference_becomes_a_short_story(two_etcds, report):
    one, other = two_etcds
    with pytest.raises(pytest.fail.Exception) as told:
        run_diff([Side("etcd", one), Liar("liar", other)], 60, report)
    lines = str(told.value).splitlines()
    assert "that is: " in lines[-1] and "version" in lines[-1]
    # A lease, two puts, and a look at it at the most.
    assert len(lines) <= 8, str(told.value)
