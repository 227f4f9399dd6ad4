# SPDX-License-Identifier: PostgreSQL
"""The checkers themselves: right histories pass, every kind of wrong one is caught."""
import random

import pytest

from etcd import api, op
from linear import Model, NotLinearizable, Op, Versions, check
from watch_check import KeyHistory, StreamLog, Wanted, WatchError, WatchLog


class Store:
    """A right store, and the history of whoever calls it: each call takes from t to t + 1."""

    def __init__(self):
        self.versions, self.truth, self.ops, self.t = Versions(), [], [], 0

    def call(self, txn, status="ok", applied=True, **options):
        record = Op(txn, self.t, self.t + 1 if status == "ok" else float("inf"), status, **options)
        self.t += 2
        self.ops.append(record)
        if applied:
            model = Model(self.versions, self.versions.revision)
            record.answer = model.txn(txn)
            self.truth += model.events
            self.versions.apply(model.events)
            record.answer.header.revision = self.versions.revision
        if status != "ok":
            record.answer = None
        return record

    def put(self, key, value, **options):
        return self.call(api.TxnRequest(success=[op(api.PutRequest(key=key, value=value))]), **options)

    def get(self, key, **options):
        return self.call(api.TxnRequest(success=[op(api.RangeRequest(key=key))]), **options)

    def delete(self, key, **options):
        return self.call(api.TxnRequest(success=[op(api.DeleteRangeRequest(key=key))]), **options)

    def check(self):
        check(self.ops, self.truth)

    def refused(self, why):
        with pytest.raises(NotLinearizable, match=why):
            self.check()


@pytest.fixture
def store():
    return Store()


def random_txn(rnd, n):
    key = [b"a", b"b", b"c"][rnd.randrange(3)]
    ops = [[op(api.PutRequest(key=key, value=b"%d" % n, prev_kv=True))],
           [op(api.DeleteRangeRequest(key=b"a", range_end=b"c", prev_kv=True))],
           [op(api.RangeRequest(key=b"a", range_end=b"\0", limit=2))],
           [op(api.PutRequest(key=key, value=b"%d" % n)), op(api.RangeRequest(key=key))]]
    compare = api.Compare(key=key, target=rnd.randrange(3), result=rnd.randrange(4), version=rnd.randrange(3))
    return api.TxnRequest(compare=[compare] if rnd.random() < 0.5 else [], success=rnd.choice(ops),
                          failure=rnd.choice(ops))


def test_right_histories_pass(store):
    rnd = random.Random(1)
    for n in range(2000):
        status = rnd.choices(["ok", "unknown", "failed"], [8, 1, 1])[0]
        applied = status == "ok" or (status == "unknown" and rnd.random() < 0.5)
        store.call(random_txn(rnd, n), status=status, applied=applied)
    store.check()


def test_calls_at_the_same_time_may_come_in_any_order(store):
    first, second = store.put(b"a", b"1"), store.put(b"a", b"2")
    first.called, second.called, first.returned, second.returned = 1, 0, 9, 9
    store.check()


def test_stale_read(store):
    store.put(b"a", b"1")
    old = store.get(b"a")
    store.put(b"a", b"2")
    old.called, old.returned = store.t, store.t + 1
    store.refused("had returned before its call")
    old.serializable, old.node = True, "n1"
    store.check()
    store.ops[-1].node = "n1"
    store.refused("node n1 answered")


def test_read_of_what_was_not_there(store):
    store.put(b"a", b"1")
    read = store.get(b"a")
    read.answer.responses[0].response_range.kvs[0].value = b"0"
    store.refused("the answer should be")


def test_lost_write(store):
    store.put(b"a", b"1")
    lost = store.put(b"b", b"2")
    store.truth.pop()
    store.refused("the store ends at revision 2")
    # Another write stands in its place.
    store.truth.append(api.Event(kv=api.KeyValue(key=b"b", value=b"3", create_revision=3, mod_revision=3, version=1)))
    store.refused("expected")
    assert lost.status == "ok"


def test_gap(store):
    for value in (b"1", b"2", b"3"):
        store.put(b"a", value)
    del store.truth[1]
    store.refused("not dense")


def test_duplicated_write(store):
    store.put(b"a", b"1")
    again = store.put(b"a", b"1")
    store.ops.remove(again)
    store.refused("somebody wrote twice")


def test_unknown_write_done_twice(store):
    first = store.put(b"a", b"1", status="unknown")
    store.check()
    store.ops.remove(store.put(b"a", b"1"))
    store.refused("somebody wrote twice")
    assert first.status == "unknown"


def test_unknown_write_before_its_call(store):
    unknown = store.put(b"a", b"1", status="unknown")
    store.put(b"b", b"2")
    store.check()
    unknown.called = store.t
    store.refused("had returned before its call")


def test_unknown_write_appears_late(store):
    """A commit that a stalled server process did after everybody had given up."""
    txn = api.TxnRequest(success=[op(api.PutRequest(key=b"a", value=b"late"))])
    store.ops.append(Op(txn, store.t))
    store.put(b"a", b"1")
    store.get(b"a")
    late = store.call(txn)
    store.ops.remove(late)
    store.get(b"a")
    store.check()


def test_unknown_deletions(store):
    for value in (b"1", b"2", b"3"):
        store.put(b"a", value)
        store.delete(b"a", status="unknown", applied=value != b"2")
        store.get(b"a")
    store.check()


def test_deletion_by_nobody(store):
    store.put(b"a", b"1")
    store.ops.remove(store.delete(b"a"))
    store.refused("nobody wrote")
    unknown = store.delete(b"a", status="unknown", applied=False)
    store.check()
    store.get(b"a")
    unknown.called = store.t
    store.refused("had returned before its call")


def test_failed_write_appears(store):
    store.put(b"a", b"1").status = "failed"
    store.refused("nobody wrote revision 2")


def test_reordered_revisions(store):
    first, second = store.put(b"a", b"1"), store.put(b"b", b"2")
    first.called, first.returned, second.called, second.returned = 4, 5, 0, 1
    store.refused("had returned before its call")


def test_two_writes_with_one_revision(store):
    first, second = store.put(b"a", b"1"), store.put(b"a", b"1")
    second.answer = first.answer
    store.truth.pop()
    store.refused("two writes have revision 2")


def test_wrong_branch(store):
    store.put(b"a", b"1")
    absent = api.Compare(key=b"a", target=api.Compare.CREATE, result=api.Compare.EQUAL, create_revision=0)
    txn = store.call(api.TxnRequest(compare=[absent], success=[op(api.PutRequest(key=b"a", value=b"2"))]))
    store.check()
    assert not txn.answer.succeeded
    txn.answer.succeeded = True
    store.refused("the answer should be")
    # Two who both found it absent.
    txn.answer.responses.add(response_put=api.PutResponse())
    txn.answer.header.revision = 3
    store.truth.append(api.Event(kv=api.KeyValue(key=b"a", value=b"2", create_revision=2, mod_revision=3, version=2)))
    store.refused("expected")


def test_torn_transaction(store):
    store.call(api.TxnRequest(success=[op(api.PutRequest(key=b"a", value=b"1")),
                                       op(api.PutRequest(key=b"b", value=b"2"))]))
    store.truth.pop()
    store.refused("expected")


# -- watches --------------------------------------------------------------------------------------------

def event(key, revision, value=b"v", create=None, version=1, prev_kv=None):
    return api.Event(kv=api.KeyValue(key=key, value=value, create_revision=create or revision,
                                     mod_revision=revision, version=version), prev_kv=prev_kv)


def deletion(key, revision):
    return api.Event(type=1, kv=api.KeyValue(key=key, mod_revision=revision))


def answer(*events, header=None, **fields):
    return api.WatchResponse(header={"revision": header or (events[-1].kv.mod_revision if events else 1)},
                             events=events, **fields)


class Watched:
    """A watcher of a prefix and the stream it is on."""

    def __init__(self, **options):
        self.stream = StreamLog()
        self.log = self.stream.expect(WatchLog(Wanted(b"a", b"b", **options), "w"))
        self.stream.take(answer(created=True))

    def refused(self, why, *answers):
        with pytest.raises(WatchError, match=why):
            for one in answers:
                self.stream.take(one)


def test_right_watch():
    w = Watched()
    for one in (answer(event(b"a", 2), event(b"ab", 2)), answer(event(b"a", 3, create=2, version=2), deletion(b"ab", 4)),
                answer(header=9, watch_id=-1), answer(event(b"a", 10)), answer(canceled=True)):
        w.stream.take(one)
    assert w.log.next_start() == 11


@pytest.mark.parametrize("why,answers", [
    ("out of order", [answer(event(b"a", 3)), answer(event(b"a", 2))]),
    ("comes after", [answer(event(b"a", 3), event(b"a", 2), header=3)]),
    ("divided", [answer(event(b"a", 3)), answer(event(b"ab", 3))]),
    ("has twice", [answer(event(b"a", 3), event(b"a", 3))]),
    ("did not ask for", [answer(event(b"c", 3))]),
    ("is below", [answer(event(b"a", 3), header=2)]),
    ("a promise of", [answer(header=9, watch_id=-1), answer(event(b"a", 8))]),
    ("bookmark", [answer(event(b"a", 8)), answer(header=7, watch_id=-1)]),
    ("after it was canceled", [answer(canceled=True), answer(event(b"a", 8))]),
    ("created twice|nobody asked", [answer(created=True)]),
    ("not there", [answer(event(b"a", 8), watch_id=5)]),
    ("did not ask for fragments", [answer(event(b"a", 8), fragment=True)])])
def test_wrong_watch(why, answers):
    Watched().refused(why, *answers)


def test_watch_options():
    Watched(filters=[1]).refused("did not ask for", answer(deletion(b"a", 3)))
    Watched(start_revision=5).refused("before the start", answer(event(b"a", 4)))
    w = Watched(fragment=True)
    w.stream.take(answer(event(b"a", 3), fragment=True))
    w.stream.take(answer(event(b"ab", 3)))
    w.refused("divided", answer(event(b"ac", 3)))


def test_complete():
    truth = KeyHistory()
    first = event(b"a", 2)
    changed = event(b"a", 3, b"w", create=2, version=2)
    for one in (first, changed, event(b"x", 4), deletion(b"a", 5)):
        truth.take(one)
    w = Watched(prev_kv=True)
    w.stream.take(answer(first))
    w.stream.take(answer(event(b"a", 3, b"w", create=2, version=2, prev_kv=first.kv)))
    truth.check(w.log, 4)
    with pytest.raises(WatchError, match="2 events of 3"):
        truth.check(w.log, 5)
    w.stream.take(answer(deletion(b"a", 5)))
    with pytest.raises(WatchError, match="prev_kv"):
        truth.check(w.log, 5)


def test_resumed_watch_has_all_of_a_divided_revision():
    w = Watched(fragment=True)
    w.stream.take(answer(event(b"a", 2)))
    w.stream.take(answer(event(b"a", 3), fragment=True))
    w.log.resumed()
    assert w.log.wanted.start == 3
    stream = StreamLog()
    stream.expect(w.log)
    stream.take(answer(created=True, header=9))
    stream.take(answer(event(b"a", 3), event(b"ab", 3)))
    truth = KeyHistory()
    for one in (event(b"a", 2), event(b"a", 3, create=2, version=2), event(b"ab", 3)):
        truth.take(one)
    assert [e.kv.mod_revision for e in w.log.events] == [2, 3, 3]


def test_impossible_history():
    truth = KeyHistory()
    with pytest.raises(WatchError, match="was not there"):
        truth.take(deletion(b"a", 2))
    truth.take(event(b"a", 2))
    with pytest.raises(WatchError, match="do not follow"):
        truth.take(event(b"a", 3))
