# SPDX-License-Identifier: PostgreSQL
"""
Is a recorded history of calls linearizable? The store helps: each answer carries a revision, so the order
is not searched for but given, and what is left is to check it.

Given are the operations, each a Txn with the times of its call and return, and the truth: all events of
the store from its beginning, in order (a watcher of everything tells them). Then

1. revisions are dense, and each is explained by exactly one operation: one that was answered with it, or
   one whose outcome is unknown (found by its values, which are unique, or by its deletions);
2. an answered operation, carried out by a small model of etcd on the state just before its revision (or,
   if it changes nothing, at its revision), gives the same events and the same answer;
3. an operation that failed for certain explains no revision;
4. real time: what is called after another has returned does not come before it in this order, and what
   returned unknown may take effect at any time after its call, but once.

Serializable reads are right at the revision that they name; it may be old, but on one node it never falls.
A violation is a NotLinearizable.
"""
import bisect
import dataclasses
import threading
import time

from google.protobuf import text_format

from etcd import CallError, api

PUT, DELETE = 0, 1


class NotLinearizable(AssertionError):
    pass


def text(message):
    return text_format.MessageToString(message, as_one_line=True)


@dataclasses.dataclass
class Op:
    """status: "ok", "unknown" or "failed"; answer is set if ok."""
    txn: object
    called: float
    returned: float = float("inf")
    status: str = "unknown"
    answer: object = None
    node: str = ""
    serializable: bool = False
    error: str = ""

    def __str__(self):
        return (f"[{self.called:.6f}, {self.returned:.6f}] {self.node} {self.status} {text(self.txn)}"
                + (f" -> {text(self.answer)}" if self.answer else f" {self.error}"))

    @property
    def revision(self):
        return self.answer.header.revision


def fail(why, *ops):
    raise NotLinearizable("\n    ".join([why, *map(str, ops)]))


# -- the model ------------------------------------------------------------------------------------------

class Versions:
    """Every version of every key."""

    def __init__(self, base=1):
        self.revision = base
        self.keys = {}      # key -> ([revision, ...], [KeyValue or None, ...])

    def apply(self, events):
        for event in events:
            revisions, values = self.keys.setdefault(event.kv.key, ([], []))
            revisions.append(event.kv.mod_revision)
            values.append(event.kv if event.type == PUT else None)
            self.revision = event.kv.mod_revision

    def get(self, key, revision):
        revisions, values = self.keys.get(key, ((), ()))
        at = bisect.bisect_right(revisions, revision)
        return values[at - 1] if at else None

    def range(self, key, end, revision, writes):
        """The living keys of a range; writes, of the Txn that asks, come before the versions."""
        if not end:
            names = [key]
        else:
            names = sorted(k for k in {*self.keys, *writes} if k >= key and (end == b"\0" or k < end))
        found = [writes[k] if k in writes else self.get(k, revision) for k in names]
        return [kv for kv in found if kv is not None]


class Model:
    """One Txn on the state at a revision."""

    def __init__(self, versions, revision):
        self.versions, self.base = versions, revision
        self.writes = {}    # key -> KeyValue, or None if deleted
        self.events = []

    def range(self, key, end):
        return self.versions.range(key, end, self.base, self.writes)

    def compare(self, c):
        kvs = self.versions.range(c.key, c.range_end, self.base, {})
        if not kvs:
            if c.target == api.Compare.VALUE:
                return False
            kvs = [api.KeyValue()]
        return all(self.compare_one(c, kv) for kv in kvs)

    @staticmethod
    def compare_one(c, kv):
        field = ["version", "create_revision", "mod_revision", "value", "lease"][c.target]
        a, b = getattr(kv, field), getattr(c, field)
        return [a == b, a > b, a < b, a != b][c.result]

    def txn(self, txn):
        succeeded = all(self.compare(c) for c in txn.compare)
        return api.TxnResponse(succeeded=succeeded, responses=[
            self.op(o) for o in (txn.success if succeeded else txn.failure)])

    def op(self, op):
        kind = op.WhichOneof("request")
        answer = getattr(self, kind)(getattr(op, kind))
        return api.ResponseOp(**{kind.replace("request_", "response_"): answer})

    def request_txn(self, txn):
        return self.txn(txn)

    def request_put(self, put):
        old = self.range(put.key, b"")
        kv = api.KeyValue(key=put.key, value=put.value, lease=put.lease, mod_revision=self.base + 1,
                          create_revision=old[0].create_revision if old else self.base + 1,
                          version=old[0].version + 1 if old else 1)
        self.writes[put.key] = kv
        self.events.append(api.Event(type=PUT, kv=kv))
        return api.PutResponse(prev_kv=old[0] if old and put.prev_kv else None)

    def request_delete_range(self, delete):
        old = self.range(delete.key, delete.range_end)
        for kv in old:
            self.writes[kv.key] = None
            self.events.append(api.Event(type=DELETE, kv=api.KeyValue(key=kv.key, mod_revision=self.base + 1)))
        return api.DeleteRangeResponse(deleted=len(old), prev_kvs=old if delete.prev_kv else [])

    def request_range(self, request):
        if request.revision:
            kvs = self.versions.range(request.key, request.range_end, request.revision, {})
        else:
            kvs = self.range(request.key, request.range_end)
        count = len(kvs)
        more = bool(request.limit) and count > request.limit
        return api.RangeResponse(count=count, more=more, kvs=[] if request.count_only
                                 else kvs[:request.limit] if more else kvs)


def without_headers(answer):
    """A copy of a TxnResponse to compare: the headers have been looked at."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    copy.ClearField("header")
    for response in copy.responses:
        inner = getattr(response, response.WhichOneof("response"))
        if inner.DESCRIPTOR.name == "TxnResponse":
            inner.CopyFrom(without_headers(inner))
        else:
            inner.ClearField("header")
    return copy


def wrote(answer):
    """A TxnResponse says that something was changed."""
    for response in answer.responses:
        kind = response.WhichOneof("response")
        inner = getattr(response, kind)
        if (kind == "response_put" or (kind == "response_delete_range" and inner.deleted)
                or (kind == "response_txn" and wrote(inner))):
            return True
    return False


def written_values(txn):
    """Every value that a Txn may put, in any branch."""
    for op in [*txn.success, *txn.failure]:
        kind = op.WhichOneof("request")
        if kind == "request_put":
            yield op.request_put.value
        elif kind == "request_txn":
            yield from written_values(op.request_txn)


# -- the checker ----------------------------------------------------------------------------------------

class Checker:
    def __init__(self, ops, truth, base=1, others=()):
        """truth: events in order; base: the revision before them; others: revisions that no operation
        need explain (leases that ended)."""
        self.ops, self.base, self.others = ops, base, set(others)
        self.revisions = {}
        for event in truth:
            self.revisions.setdefault(event.kv.mod_revision, []).append(event)
        self.last = base + len(self.revisions)
        if sorted(self.revisions) != list(range(base + 1, self.last + 1)):
            fail(f"revisions are not dense: {len(self.revisions)} between {min(self.revisions)} and"
                 f" {max(self.revisions)}, after {base}")
        self.versions = Versions(base)
        for revision in range(base + 1, self.last + 1):
            self.versions.apply(self.revisions[revision])
        self.position = {}      # id(op) -> its place in the order: revision for a write, + 0.5 for a read

    def check(self):
        written = {}
        for op in self.ops:
            if op.status == "ok":
                self.answered(op, written)
        self.explain(written)
        self.real_time()
        self.serializable()

    def answered(self, op, written):
        if not self.base <= op.revision <= self.last:
            fail(f"the store ends at revision {self.last}; an answer is lost or from the future:", op)
        if not wrote(op.answer):
            self.carry_out(op, op.revision, [])
            self.position[id(op)] = op.revision + 0.5
            return
        if op.revision in written:
            fail(f"two writes have revision {op.revision}:", written[op.revision], op)
        if op.revision == self.base:
            fail("a write with the revision of an empty store:", op)
        written[op.revision] = op
        self.carry_out(op, op.revision - 1, self.revisions[op.revision])
        self.position[id(op)] = op.revision

    def carry_out(self, op, revision, events):
        """The model agrees with the events, and with the answer if there is one."""
        model = Model(self.versions, revision)
        answer = model.txn(op.txn)
        if model.events != events:
            fail(f"after revision {revision}, expected {list(map(text, model.events))}, but there is"
                 f" {list(map(text, events))}:", op)
        if op.status == "ok" and answer != without_headers(op.answer):
            fail(f"at revision {revision}, the answer should be {text(answer)}:", op)

    def explain(self, written):
        """Every revision that no answer names comes from an operation whose outcome is unknown."""
        unknown = sorted((op for op in self.ops if op.status == "unknown"), key=lambda op: op.called)
        by_value = {value: op for op in unknown for value in written_values(op.txn)}
        used = set()
        for revision in range(self.base + 1, self.last + 1):
            if revision in written or revision in self.others:
                continue
            op = self.who(revision, by_value, [u for u in unknown if id(u) not in used])
            if op is None or id(op) in used:
                fail(f"nobody wrote revision {revision} (or somebody wrote twice):"
                     f" {list(map(text, self.revisions[revision]))}", *([op] if op else []), *self.suspects(revision))
            self.carry_out(op, revision - 1, self.revisions[revision])
            used.add(id(op))
            self.position[id(op)] = revision

    def who(self, revision, by_value, unused):
        events = self.revisions[revision]
        values = [e.kv.value for e in events if e.type == PUT]
        if values:
            return by_value.get(values[0])
        for op in unused:   # deletions only: the one called first that does just this
            model = Model(self.versions, revision - 1)
            model.txn(op.txn)
            if model.events == events:
                return op
        return None

    def suspects(self, revision):
        values = {e.kv.value for e in self.revisions[revision] if e.type == PUT}
        return [op for op in self.ops if values & set(written_values(op.txn))]

    def real_time(self):
        """Sweeps over the calls; before each, the highest place of what has returned."""
        placed = [op for op in self.ops if id(op) in self.position and not op.serializable]
        returned = sorted((op for op in placed if op.status == "ok"), key=lambda op: op.returned)
        at, highest = 0, None
        for op in sorted(placed, key=lambda op: op.called):
            while at < len(returned) and returned[at].returned < op.called:
                if highest is None or self.position[id(returned[at])] > self.position[id(highest)]:
                    highest = returned[at]
                at += 1
            if highest is not None and self.position[id(op)] < self.position[id(highest)]:
                fail(f"at place {self.position[id(op)]}, but place {self.position[id(highest)]} had returned"
                     " before its call:", op, highest)

    def serializable(self):
        """A node never answers below what it has answered, whoever asked."""
        by_node = {}
        for op in self.ops:
            if op.status == "ok":
                by_node.setdefault(op.node, []).append(op)
        for ops in by_node.values():
            returned = sorted(ops, key=lambda op: op.returned)
            at, highest = 0, None
            for op in sorted(ops, key=lambda op: op.called):
                while at < len(returned) and returned[at].returned < op.called:
                    if highest is None or returned[at].revision > highest.revision:
                        highest = returned[at]
                    at += 1
                if highest is not None and op.revision < highest.revision:
                    fail(f"node {op.node} answered {op.revision} after it had answered {highest.revision}:", op, highest)


def check(ops, truth, base=1, others=()):
    Checker(ops, truth, base, others).check()


# -- recording ------------------------------------------------------------------------------------------

class Recorder:
    """Operations of many threads, each with its own clients."""

    def __init__(self):
        self.ops = []
        self.lock = threading.Lock()

    def call(self, client, node, txn, timeout=None):
        """A Txn; its answer, or None. What became of it is recorded."""
        op = Op(txn, time.monotonic(), node=node)
        with self.lock:
            self.ops.append(op)
        try:
            op.answer = client.call("Txn", txn, timeout=timeout)
            op.status = "ok"
        except CallError as e:
            op.status, op.error = "unknown" if e.unknown else "failed", str(e)
        op.returned = time.monotonic() if op.status == "ok" else float("inf")
        return op.answer

    def get(self, client, node, key, range_end=b"", serializable=False, **options):
        """A Range, recorded as the Txn that says the same."""
        request = api.RangeRequest(key=key, range_end=range_end, serializable=serializable, **options)
        op = Op(api.TxnRequest(success=[api.RequestOp(request_range=request)]), time.monotonic(), node=node,
                serializable=serializable)
        with self.lock:
            self.ops.append(op)
        try:
            answer = client.call("Range", request)
            op.answer = api.TxnResponse(header=answer.header, succeeded=True,
                                        responses=[api.ResponseOp(response_range=answer)])
            op.status, op.returned = "ok", time.monotonic()
            return answer
        except CallError as e:
            op.status, op.error = "failed", str(e)
            return None

    def count(self, status):
        return sum(op.status == status for op in self.ops)
