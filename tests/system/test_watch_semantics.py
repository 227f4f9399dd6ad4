# SPDX-License-Identifier: PostgreSQL
"""
What a rewrite of etcd gets wrong, point by point, on Debian's etcd and on watchd with the same
assertions. The few that etcd 3.4 itself gets wrong (mended in later versions) run on watchd only.
"""
import math
import time

import pytest

from etcd import CallError, api, op, prefix_end
from suite import wait_until

COMPACTED = "OUT_OF_RANGE: etcdserver: mvcc: required revision has been compacted"
FUTURE = "OUT_OF_RANGE: etcdserver: mvcc: required revision is a future revision"
INVALID = "INVALID_ARGUMENT: etcdserver: "
NO_LEASE = "NOT_FOUND: etcdserver: requested lease not found"
DUPLICATE = INVALID + "duplicate key given in txn request"


@pytest.fixture
def client(server):
    yield server.client()
    server.close_clients()


@pytest.fixture
def k(request):
    """k(name): a key of this test's own."""
    return lambda name=b"": request.node.originalname.encode() + b"/" + name


def put(key, value=b"", **options):
    return op(api.PutRequest(key=key, value=value, **options))


def get(key, range_end=b"", **options):
    return op(api.RangeRequest(key=key, range_end=range_end, **options))


def delete(key, range_end=b"", **options):
    return op(api.DeleteRangeRequest(key=key, range_end=range_end, **options))


def txn(compare=(), success=(), failure=()):
    return op(api.TxnRequest(compare=compare, success=success, failure=failure))


def absent(key):
    return api.Compare(key=key, target=api.Compare.CREATE, result=api.Compare.EQUAL, create_revision=0)


NEVER = api.Compare(key=b"never", target=api.Compare.VERSION, result=api.Compare.LESS, version=0)


def keys(answer):
    return [kv.key for kv in answer.kvs]


def compact_at(client, revision):
    client.call("Compact", revision=revision)


# -- 1. revisions ---------------------------------------------------------------------------------------

def test_fresh_store_is_revision_1_and_each_change_is_one_more(serve_own):
    client = serve_own().client()
    assert client.revision() == 1
    assert client.put(b"a").header.revision == 2
    assert client.put(b"a").header.revision == 3
    many = client.txn(success=[put(b"b"), put(b"c"), delete(b"a"), put(b"d")])
    assert many.header.revision == 4
    assert {kv.mod_revision for kv in client.get(b"b", b"\0").kvs} == {4}
    # What changes nothing:
    assert client.delete(b"none").header.revision == 4
    assert client.txn([NEVER], [put(b"a")]).header.revision == 4
    assert client.txn(success=[get(b"b"), delete(b"none")]).header.revision == 4
    lease = client.call("LeaseGrant", TTL=100)
    assert lease.header.revision == 4
    assert client.keep_alive_once(lease.ID) == 100
    assert client.call("LeaseRevoke", ID=lease.ID).header.revision == 4
    assert client.call("Compact", revision=3).header.revision == 4
    client.error("Put", key=b"a", lease=12345)
    assert client.put(b"a").header.revision == 5


def test_events_of_a_transaction_are_in_the_order_of_its_operations(client, k):
    client.put(k(b"gone"))
    watch = client.watch()
    watch.create(k(), prefix_end(k()))
    client.txn(success=[put(k(b"z")), txn(success=[put(k(b"b"))]), delete(k(b"gone")), put(k(b"a"))])
    events = watch.wait_events(4)
    assert [(e.type, e.kv.key) for e in events] == [(0, k(b"z")), (0, k(b"b")), (1, k(b"gone")), (0, k(b"a"))]
    assert len({e.kv.mod_revision for e in events}) == 1


# -- 2. the life of a key -------------------------------------------------------------------------------

def test_version_and_create_revision_begin_anew_after_a_deletion(client, k):
    watch = client.watch()
    watch.create(k())
    first = client.put(k(), b"1").header.revision
    client.put(k(), b"2")
    kv = client.get(k()).kvs[0]
    assert (kv.version, kv.create_revision, kv.mod_revision) == (2, first, first + 1)
    client.delete(k())
    again = client.put(k(), b"3").header.revision
    kv = client.get(k()).kvs[0]
    assert (kv.version, kv.create_revision, kv.mod_revision) == (1, again, again)
    gone = watch.wait_events(4)[2]
    assert gone.type == 1 and gone.kv == api.KeyValue(key=k(), mod_revision=first + 2)
    # Older revisions are what they were.
    assert client.get(k(), revision=first + 1).kvs[0].value == b"2"
    assert client.get(k(), revision=first + 2).count == 0


# -- 3. ranges ------------------------------------------------------------------------------------------

@pytest.fixture
def five(client, k):
    """a..e; versions 3 1 2 1 1, values in the opposite order; created in the order c a e b d."""
    created = {name: client.put(k(name), b"zyxwv"[i:i + 1]).header.revision for i, name in
               sorted(enumerate([b"a", b"b", b"c", b"d", b"e"]), key=lambda item: b"caebd".index(item[1]))}
    client.put(k(b"a"), b"z")
    client.put(k(b"a"), b"z")
    client.put(k(b"c"), b"x")
    return created


def test_limit_count_and_more(client, k, five):
    end = prefix_end(k())
    answer = client.get(k(), end, limit=2)
    assert keys(answer) == [k(b"a"), k(b"b")] and answer.more and answer.count == 5
    answer = client.get(k(), end, limit=5)
    assert len(answer.kvs) == 5 and not answer.more
    answer = client.get(k(), end, count_only=True, limit=2)
    assert answer.count == 5 and not answer.kvs and not answer.more
    # The filters do not change count; the limit comes after them.
    answer = client.get(k(), end, min_create_revision=five[b"e"], limit=2)
    assert keys(answer) == [k(b"b"), k(b"d")] and answer.count == 5 and answer.more
    assert client.get(k(), end, limit=-1).count == 5
    assert {kv.value for kv in client.get(k(), end, keys_only=True).kvs} == {b""}


def test_sorting(client, k, five):
    end, target = prefix_end(k()), api.RangeRequest

    def names(**options):
        return b"".join(key[-1:] for key in keys(client.get(k(), end, **options)))
    assert names(sort_order=target.DESCEND) == b"edcba"
    assert names(sort_target=target.CREATE, sort_order=target.ASCEND) == b"caebd"
    assert names(sort_target=target.CREATE, sort_order=target.DESCEND) == b"dbeac"
    assert names(sort_target=target.VALUE) == b"edcba"      # a target without an order: ascending
    assert names(sort_target=target.MOD) == b"ebdac"
    assert names(sort_target=target.VERSION, sort_order=target.DESCEND, limit=2) == b"ac"
    assert names(sort_target=target.CREATE, sort_order=target.ASCEND, limit=1) == b"c"
    assert names(sort_target=target.CREATE, limit=1) == b"a"    # but then the limit comes first
    assert names(max_mod_revision=five[b"d"]) == b"bde"


def test_range_ends(client, k):
    raw = [k(b"\0"), k(b"a\0b"), k(b"a\xff"), k(b"a\xff\xff"), k(b"\xff")]
    for key in raw:
        client.put(key)
    assert keys(client.get(k(), prefix_end(k()))) == raw
    assert keys(client.get(k(b"a"), prefix_end(k(b"a")))) == raw[1:4]
    assert keys(client.get(k(b"a\xff"), b"\0", limit=3)) == raw[2:]      # from key
    assert client.get(b"\0", b"\0").count >= 5                           # everything
    assert client.get(k(b"b"), k(b"a")).count == 0                       # nothing
    assert client.get(k(b"a\xff"), k(b"a\xff")).count == 0
    assert client.error("Range", key=b"") == INVALID + "key is not provided"


@pytest.mark.parametrize("options", [{"sort_target": 5}, {"sort_order": 1, "sort_target": 9},
                                     {"sort_target": -1}])
def test_sort_that_does_not_exist(server, client, options):
    if server.kind == "etcd":
        pytest.skip("etcd 3.4 dies of it")
    assert client.error("Range", key=b"a", **options) == INVALID + "invalid sort option"


# -- 4. compaction --------------------------------------------------------------------------------------

def test_compacted_and_future_revisions(client, k):
    first = client.put(k(), b"1").header.revision
    client.put(k(), b"2")
    last = client.put(k(), b"3").header.revision
    compact_at(client, first + 1)
    assert client.error("Range", key=k(), revision=first) == COMPACTED
    assert client.get(k(), revision=first + 1).kvs[0].value == b"2"
    assert client.error("Range", key=k(), revision=last + 1) == FUTURE
    assert client.error("Compact", revision=first + 1) == COMPACTED
    assert client.error("Compact", revision=last + 1) == FUTURE
    assert client.error("Compact", revision=0) == COMPACTED
    # Inside of a transaction, too, and before anything is written.
    for revision, text in ((first, COMPACTED), (last + 1, FUTURE)):
        assert client.error("Txn", success=[put(k(b"not")), get(k(), revision=revision)]) == text
    assert client.get(k(b"not")).count == 0 and client.revision() == last
    compact_at(client, last)
    assert client.get(k(), revision=last).kvs[0].value == b"3"


def test_compaction_keeps_what_lives_and_forgets_tombstones(client, k):
    client.put(k(b"kept"), b"1")
    client.put(k(b"gone"), b"1")
    gone = client.delete(k(b"gone")).header.revision
    client.put(k(b"other"))
    compact_at(client, gone)
    assert client.get(k(b"kept"), revision=gone).kvs[0].value == b"1"
    assert client.get(k(b"gone"), revision=gone).count == 0
    again = client.put(k(b"gone")).header.revision
    kv = client.get(k(b"gone")).kvs[0]
    assert (kv.version, kv.create_revision) == (1, again)


def test_watch_from_the_compacted_revision(client, k):
    client.put(k(), b"0")
    first = client.put(k(), b"1").header.revision
    client.put(k(), b"2")
    compact_at(client, first)
    watch = client.watch()
    watch.create(k(), start_revision=first, prev_kv=True)
    events = watch.wait_events(2)
    assert [e.kv.value for e in events] == [b"1", b"2"]
    # What was before the compacted revision is gone.
    assert not events[0].HasField("prev_kv") and events[1].prev_kv.value == b"1"


def test_18089_watch_from_the_compacted_revision_gets_a_deletion(server, client, k):
    if server.kind == "etcd":
        pytest.skip("etcd 3.4 may lose it")
    client.put(k())
    gone = client.delete(k()).header.revision
    client.put(k())
    client.call("Compact", revision=gone, physical=True)
    watch = client.watch()
    watch.create(k(), start_revision=gone)
    assert [e.type for e in watch.wait_events(2)] == [1, 0]


def test_watch_from_a_compacted_revision(client, k):
    first = client.put(k()).header.revision
    last = client.put(k()).header.revision
    compact_at(client, last)
    watch = client.watch()
    created = watch.create(k(), start_revision=first)
    assert not created.canceled
    canceled = watch.wait_canceled(created.watch_id)
    assert canceled.compact_revision == last and canceled.cancel_reason == ""
    assert canceled.header.revision == 0 and not canceled.events and not canceled.created


def test_watch_from_a_negative_revision(serve_own):
    server = serve_own()
    client = server.client()
    client.put(b"k")
    watch = client.watch()
    # Nothing has been compacted: -1 is now, to etcd when it next looks.
    watch.create(b"k", start_revision=-1)
    wait_until("an event", lambda: client.put(b"k") and watch.events())
    last = client.revision()
    wait_until("the last event", lambda: watch.events()[-1].kv.mod_revision == last)
    got = [e.kv.mod_revision for e in watch.events()]
    assert got[0] > 2 and got == list(range(got[0], last + 1))
    assert server.kind == "etcd" or got[0] == 3
    below = watch.create(b"k", start_revision=-2)
    assert watch.wait_canceled(below.watch_id).compact_revision == -1
    assert client.call("Compact", revision=0).header.revision == last
    start = watch.create(b"k", start_revision=-1)
    answer = watch.wait("an answer", lambda answers: [
        a for a in answers if a.watch_id == start.watch_id and not a.created])[0]
    assert answer.header.revision == 0 and answer.compact_revision == 0 and not answer.events
    # etcd 3.4 forgets it, and does not say so.
    assert answer.canceled == (server.kind == "watchd")
    n = len(watch.events())
    client.put(b"k")
    watch.wait_events(n + 1)
    assert not watch.events(start.watch_id)


def test_20693_a_watch_from_a_negative_revision_beside_others(serve_own):
    server = serve_own()
    if server.kind == "etcd":
        pytest.skip("in etcd 3.4 the others lose their past")
    client = server.client()
    for _ in range(3):
        client.put(b"k")
    watch = client.watch()
    for start in (-1, 2, 3):
        watch.create(b"k", start_revision=start, wait=False)
    assert [e.kv.mod_revision for e in watch.wait_events(3, 1)] == [2, 3, 4]
    assert [e.kv.mod_revision for e in watch.wait_events(2, 2)] == [3, 4]
    assert not watch.events(0)


# -- 5. transactions ------------------------------------------------------------------------------------

def test_comparisons_with_a_missing_key(client, k):
    compare = api.Compare
    for target, field in ((compare.VERSION, "version"), (compare.CREATE, "create_revision"),
                          (compare.MOD, "mod_revision"), (compare.LEASE, "lease")):
        for result, outcome in ((compare.EQUAL, True), (compare.GREATER, False), (compare.NOT_EQUAL, False)):
            c = compare(key=k(), target=target, result=result, **{field: 0})
            assert client.txn([c]).succeeded == outcome, (target, result)
    for result in range(4):     # a value is not compared with nothing
        assert not client.txn([compare(key=k(), target=compare.VALUE, result=result, value=b"")]).succeeded


def test_comparison_of_a_range_means_all_of_it(client, k):
    compare, end = api.Compare, prefix_end(k())
    client.put(k(b"a"), b"1")
    client.put(k(b"b"), b"1")
    same = compare(key=k(), range_end=end, target=compare.VALUE, result=compare.EQUAL, value=b"1")
    assert client.txn([same]).succeeded
    client.put(k(b"c"), b"2")
    assert not client.txn([same]).succeeded
    nothing = compare(key=k(b"x"), range_end=k(b"y"), target=compare.VERSION, result=compare.EQUAL, version=0)
    assert client.txn([nothing]).succeeded


def test_branches_are_chosen_before_the_first_write(client, k):
    answer = client.txn(success=[put(k()), txn([absent(k())], [put(k(b"inner"))], [put(k(b"wrong"))])])
    assert answer.responses[1].response_txn.succeeded
    assert keys(client.get(k(), prefix_end(k()))) == [k(), k(b"inner")]


def test_inner_ranges_see_earlier_writes_and_inner_headers_say_only_the_revision(client, k):
    client.put(k(), b"old")
    before = client.revision()
    answer = client.txn(success=[get(k()), put(k(), b"new", prev_kv=True), get(k()), get(k(), revision=before)])
    first, written, second, past = answer.responses
    assert first.response_range.kvs[0].value == b"old" and second.response_range.kvs[0].value == b"new"
    assert past.response_range.kvs[0].value == b"old"
    assert written.response_put.prev_kv.value == b"old"
    assert second.response_range.kvs[0].mod_revision == before + 1
    header = second.response_range.header
    assert header.revision == before + 1 and not (header.cluster_id or header.member_id or header.raft_term)
    assert first.response_range.header.revision == before
    assert answer.header.revision == before + 1 and answer.header.cluster_id


@pytest.mark.parametrize("ops,legal", [
    ([put(b"d/a"), put(b"d/a")], False),
    ([put(b"d/a"), delete(b"d/", b"d0")], False),
    ([delete(b"d/a"), put(b"d/a")], False),
    ([delete(b"d/a"), delete(b"d/a")], True),
    ([put(b"d/a"), txn(success=[put(b"d/a")])], False),
    ([txn(success=[put(b"d/a")], failure=[put(b"d/a")])], True),
    ([txn(success=[put(b"d/a")]), txn(success=[put(b"d/a")])], False),
    ([txn(success=[delete(b"d/a")]), put(b"d/a")], False),
    ([get(b"d/a"), put(b"d/a"), get(b"d/a")], True)])
def test_duplicate_keys(client, ops, legal):
    request = api.TxnRequest(success=ops)
    if legal:
        client.call("Txn", request)
    else:
        assert client.error("Txn", request) == DUPLICATE
        assert client.error("Txn", api.TxnRequest(failure=ops)) == DUPLICATE


def test_limits_of_a_transaction(client, k):
    client.txn(success=[get(b"a")] * 128)
    for field, value in (("success", get(b"a")), ("failure", get(b"a")), ("compare", absent(b"a"))):
        assert client.error("Txn", **{field: [value] * 129}) == INVALID + "too many operations in txn request"
    # Along one path of nested ones.
    nested = txn(success=[get(b"a")] * 64)
    assert client.error("Txn", success=[get(b"a")] * 64 + [nested]) == INVALID + "too many operations in txn request"
    for bad in (put(b""), get(b""), delete(b""), txn(success=[put(b"")])):
        assert client.error("Txn", success=[bad]) == INVALID + "key is not provided"
    assert client.error("Txn", compare=[api.Compare(key=b"")]) == INVALID + "key is not provided"
    assert client.error("Txn", success=[api.RequestOp()]) == INVALID + "key not found"


def test_nothing_of_a_refused_transaction_is_done(client, k):
    client.put(k(b"exists"))
    before = client.revision()
    for bad, text in ((put(k(), lease=4711), NO_LEASE), (put(k(), ignore_value=True), INVALID + "key not found"),
                      (get(k(), revision=1 << 50), FUTURE)):
        assert client.error("Txn", success=[put(k(b"first")), delete(k(b"exists")), txn(success=[bad])]) == text
    assert client.revision() == before and client.get(k(b"first")).count == 0


# -- 6. puts --------------------------------------------------------------------------------------------

def test_put_errors(client, k):
    assert client.error("Put", key=b"") == INVALID + "key is not provided"
    assert client.error("Put", key=k(), lease=4711) == NO_LEASE
    assert client.error("Put", key=k(), ignore_value=True) == INVALID + "key not found"
    assert client.error("Put", key=k(), ignore_lease=True) == INVALID + "key not found"
    assert client.error("Put", key=k(), ignore_value=True, value=b"x") == INVALID + "value is provided"
    assert client.error("Put", key=k(), ignore_lease=True, lease=1) == INVALID + "lease is provided"


def test_ignore_value_and_lease(client, k):
    lease = client.call("LeaseGrant", TTL=100).ID
    client.put(k(), b"value", lease=lease)
    client.put(k(), b"other", ignore_lease=True)
    kv = client.get(k()).kvs[0]
    assert (kv.value, kv.lease, kv.version) == (b"other", lease, 2)
    answer = client.put(k(), ignore_value=True, prev_kv=True)
    assert answer.prev_kv == kv
    kv = client.get(k()).kvs[0]
    assert (kv.value, kv.lease, kv.version) == (b"other", 0, 3)
    assert not client.put(k(b"new"), prev_kv=True).HasField("prev_kv")


def test_requests_of_the_largest_size(client, k):
    limit = 1536 * 1024
    key, value = k(), b"x" * (limit - 100)
    client.put(key, value)
    assert client.get(key).kvs[0].value == value
    assert client.error("Put", key=key, value=b"x" * limit) == INVALID + "request is too large"
    # Beyond half a megabyte more, the message is not even read.
    assert client.error("Put", key=key, value=b"x" * (limit + 512 * 1024)).startswith("RESOURCE_EXHAUSTED: grpc: ")


# -- 7. watches -----------------------------------------------------------------------------------------

def test_watch_of_the_future(client, k):
    watch = client.watch()
    start = client.revision() + 3
    watch.create(k(), start_revision=start)
    for value in (b"1", b"2", b"3", b"4"):
        client.put(k(), value)
    assert [e.kv.value for e in watch.wait_events(2)] == [b"3", b"4"]
    assert watch.events()[0].kv.mod_revision == start


def test_watch_of_the_past_joins_the_present(client, k):
    first = client.put(k(), b"0").header.revision
    for i in range(1, 50):
        client.put(k(), b"%d" % i)
    watch = client.watch()
    watch.create(k(), start_revision=first + 10)
    for i in range(50, 100):
        client.put(k(), b"%d" % i)
    assert [int(e.kv.value) for e in watch.wait_events(90)] == list(range(10, 100))


def test_filters_that_leave_nothing_send_nothing(client, k):
    watch = client.watch()
    watch.create(k(), filters=[0], watch_id=5)
    watch.create(k(), filters=[1], watch_id=6)
    watch.create(k(), filters=[0, 1], watch_id=7)
    client.put(k())
    client.delete(k())
    assert [e.type for e in watch.wait_events(1, 5)] == [1]
    assert [e.type for e in watch.wait_events(1, 6)] == [0]
    assert not [a for a in watch.snapshot() if a.watch_id == 7 and not a.created]


def test_refused_watches(client, k):
    watch = client.watch()
    answer = watch.create(k(b"b"), k(b"a"))
    assert answer.created and answer.canceled and answer.watch_id == -1 and answer.cancel_reason
    answer = watch.create(k(b"b"), k(b"b"))
    assert answer.created and answer.canceled and answer.watch_id == -1
    watch.create(k(), watch_id=9)
    answer = watch.create(k(), watch_id=9)
    assert answer.created and answer.canceled and answer.watch_id == -1 and answer.cancel_reason
    # The stream goes on.
    client.put(k())
    watch.wait_events(1, 9)


def test_watch_ids(client, k):
    watch = client.watch()
    ids = [watch.create(k(), watch_id=i).watch_id for i in (0, 2, 0, 0, 1 << 40, 0)]
    assert ids == [0, 2, 1, 3, 1 << 40, 4]
    watch.cancel(2)
    assert watch.wait_canceled(2).cancel_reason == ""
    watch.cancel(2)
    watch.cancel(77)
    watch.create(k(), watch_id=2)
    client.put(k())
    watch.wait_events(1, 2)
    assert len([a for a in watch.snapshot() if a.canceled]) == 1    # who is not there is not answered


def test_watch_of_an_empty_key(client):
    watch = client.watch()
    watch.create()                      # the key "\0"
    watch.create(range_end=b"\0")       # everything
    client.put(b"\0")
    client.put(b"z")
    assert [e.kv.key for e in watch.wait_events(2, 1)] == [b"\0", b"z"]
    assert [e.kv.key for e in watch.events(0)] == [b"\0"]


def test_prev_kv(client, k):
    watch = client.watch()
    watch.create(k(), prev_kv=True)
    client.put(k(), b"1")
    client.put(k(), b"2")
    client.delete(k())
    client.put(k(), b"3")
    created, changed, gone, again = watch.wait_events(4)
    assert not created.HasField("prev_kv") and not again.HasField("prev_kv")
    assert changed.prev_kv == created.kv and gone.prev_kv == changed.kv


def test_a_revision_is_not_divided(client, k):
    """More than a message's worth in one transaction comes in one answer."""
    watch = client.watch()
    watch.create(k(), prefix_end(k()))
    client.txn(success=[put(k(b"%d" % i), b"x" * 14000) for i in range(100)])
    client.txn(success=[put(k(b"%d" % i), b"y" * 14000) for i in range(100)])
    watch.wait_events(200)
    assert all(len(a.events) == 100 for a in watch.snapshot() if a.events)


def test_fragments(client, k):
    """Only who asked for fragments gets them: all but the last say that there is more."""
    for i in range(4):
        client.put(k(b"%d" % i), b"x" * 700_000)
    start = client.txn(success=[delete(k(b"%d" % i)) for i in range(4)]).header.revision
    watch = client.watch()
    watch.create(k(), prefix_end(k()), start_revision=start, prev_kv=True, fragment=True, watch_id=1)
    watch.create(k(), prefix_end(k()), start_revision=start, prev_kv=True, watch_id=2)
    watch.wait_events(4, 1)
    watch.wait_events(4, 2)
    parts = [a for a in watch.snapshot() if a.events and a.watch_id == 1]
    assert len(parts) > 1 and [a.fragment for a in parts] == [True] * (len(parts) - 1) + [False]
    whole = [a for a in watch.snapshot() if a.events and a.watch_id == 2]
    assert len(whole) == 1 and not whole[0].fragment
    assert watch.events(1) == watch.events(2)


def test_progress_on_request(client, k):
    watch = client.watch()
    watch.create(k())
    client.put(k(b"other"))
    revision = client.put(k()).header.revision
    watch.wait_events(1)
    watch.progress()
    answer = watch.wait("progress", lambda answers: [a for a in answers if a.watch_id == -1])[0]
    assert answer.header.revision == revision and not answer.events and not answer.created


def test_15220_progress_on_request_comes_after_the_events(server, client, k):
    if server.kind == "etcd":
        pytest.skip("etcd 3.4 answers at once")
    first = client.put(k()).header.revision
    for _ in range(300):
        client.put(k(), b"x" * 2000)
    last = client.revision()
    watch = client.watch()
    for i in range(20):
        watch.create(k(), start_revision=first, watch_id=i + 1, wait=False)
    for _ in range(100):
        watch.progress()
    wait_until("progress", lambda: [a for a in watch.snapshot() if a.watch_id == -1])
    seen = {}
    for a in watch.snapshot():
        if a.watch_id == -1:
            behind = [i for i, revision in seen.items() if revision < min(a.header.revision, last)]
            assert len(seen) == 20 and not behind, f"progress {a.header.revision} before the events of {behind}"
        elif a.events:
            seen[a.watch_id] = a.events[-1].kv.mod_revision


def test_20221_progress_is_not_for_watches_of_the_future(server, client, k):
    if server.kind == "etcd":
        pytest.skip("etcd 3.4 answers all the same")
    watch = client.watch()
    start = client.revision() + 3
    watch.create(k(), start_revision=start)
    watch.progress()
    for _ in range(3):
        client.put(k())
    watch.wait_events(1)
    watch.progress()
    watch.wait("progress", lambda answers: [a for a in answers if a.watch_id == -1])
    assert all(a.header.revision >= start - 1 for a in watch.snapshot() if a.watch_id == -1)


def test_progress_notifications(serve_own):
    """From time to time, to watches that asked for it and have been quiet."""
    server = serve_own(progress_ms=500)
    client = server.client()
    watch = client.watch()
    watch.create(b"quiet", progress_notify=True, watch_id=1)
    watch.create(b"not", watch_id=2)
    revision = client.put(b"other").header.revision

    def notified(answers):
        return [a for a in answers if a.watch_id == 1 and not a.created and a.header.revision == revision]
    answer = watch.wait("notification", notified)[0]
    assert not answer.events
    count = len(watch.snapshot())
    revision = client.put(b"quiet").header.revision
    watch.wait("two more", lambda answers: len(notified(answers)) >= 3)
    assert watch.snapshot()[count].events       # the event, not a notification of its revision, comes first
    assert not [a for a in watch.snapshot() if a.watch_id == 2 and not a.created]


def test_events_wait_for_created(client, k):
    """Watches that are made while keys change: created comes first, nothing is missed or twice."""
    watch = client.watch()
    first = client.put(k(), b"0").header.revision
    for i in range(1, 60):
        watch.create(k(), watch_id=i, start_revision=first + i, wait=False)
        client.put(k(), b"%d" % i)
    for i in range(1, 60):
        assert [int(e.kv.value) for e in watch.wait_events(60 - i, i)] == list(range(i, 60))
        assert [a for a in watch.snapshot() if a.watch_id == i][0].created


# -- 8. leases ------------------------------------------------------------------------------------------

def test_all_keys_of_a_lease_go_in_one_revision_in_order(client, k):
    lease = client.call("LeaseGrant", TTL=100).ID
    names = [k(n) for n in (b"c", b"a", b"b")]
    for name in names:
        client.put(name, lease=lease)
    client.put(k(b"moved"), lease=lease)
    client.put(k(b"moved"))             # no longer attached
    assert sorted(client.call("LeaseTimeToLive", ID=lease, keys=True).keys) == sorted(names)
    watch = client.watch()
    watch.create(k(), prefix_end(k()), prev_kv=True)
    revision = client.call("LeaseRevoke", ID=lease).header.revision
    events = watch.wait_events(3)
    assert [e.kv.key for e in events] == sorted(names)
    assert {e.kv.mod_revision for e in events} == {revision} and {e.type for e in events} == {1}
    assert events[0].prev_kv.lease == lease
    assert client.get(k(b"moved")).count == 1


def test_lease_expires_not_before_its_time(client, k):
    began = time.monotonic()
    granted = client.call("LeaseGrant", TTL=1)
    assert granted.TTL == 2             # the shortest there is
    client.put(k(b"a"), lease=granted.ID)
    client.put(k(b"b"), lease=granted.ID)
    watch = client.watch()
    watch.create(k(), prefix_end(k()))
    events = watch.wait_events(2)
    assert time.monotonic() - began >= 2
    assert events[0].kv.mod_revision == events[1].kv.mod_revision
    wait_until("lease is forgotten", lambda: client.call("LeaseTimeToLive", ID=granted.ID).TTL == -1)


def test_keepalive_prolongs(client, k):
    lease = client.call("LeaseGrant", TTL=2).ID
    client.put(k(), lease=lease)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert client.keep_alive_once(lease) == 2
        time.sleep(0.3)
    assert client.get(k()).count == 1
    wait_until("key is gone", lambda: client.get(k()).count == 0)


def test_leases_that_are_not_there(client):
    assert client.keep_alive_once(4711) == 0
    answer = client.call("LeaseTimeToLive", ID=4711, keys=True)
    assert answer.TTL == -1 and answer.ID == 4711 and answer.grantedTTL == 0
    assert client.error("LeaseRevoke", ID=4711) == NO_LEASE


def test_lease_grants(client):
    lease = client.call("LeaseGrant", TTL=100, ID=77)
    assert lease.ID == 77 and lease.TTL == 100
    assert client.error("LeaseGrant", TTL=100, ID=77) == "FAILED_PRECONDITION: etcdserver: lease already exists"
    assert client.error("LeaseGrant", TTL=9_000_000_001) == "OUT_OF_RANGE: etcdserver: too large lease TTL"
    chosen = client.call("LeaseGrant", TTL=9_000_000_000)
    assert chosen.ID > 0
    there = {one.ID for one in client.call("LeaseLeases").leases}
    assert {77, chosen.ID} <= there
    answer = client.call("LeaseTimeToLive", ID=77)
    assert 98 <= answer.TTL <= 100 and answer.grantedTTL == 100 and not answer.keys
    for lease in there:
        client.call("LeaseRevoke", ID=lease)


# -- 10. headers, and the rest --------------------------------------------------------------------------

def test_headers(client):
    headers = [client.put(b"h").header, client.get(b"h").header, client.call("Status").header,
               client.call("MemberList").header, client.call("LeaseLeases").header, client.call("HashKV").header]
    assert all(h.cluster_id and h.member_id and h.raft_term for h in headers)
    assert len({(h.cluster_id, h.member_id) for h in headers}) == 1
    watch = client.watch()
    h = watch.create(b"h").header
    assert (h.cluster_id, h.member_id) == (headers[0].cluster_id, headers[0].member_id) and h.raft_term


def test_status(client):
    status = client.call("Status")
    assert status.version.split(".")[0] == "3" and status.dbSize > 0 and status.leader == status.header.member_id
    assert 0 < status.dbSizeInUse <= status.dbSize
    assert status.raftTerm == status.header.raft_term and status.raftIndex and not status.errors


def test_hash_of_the_keys(client, k):
    client.put(k(), b"1")
    first = client.call("HashKV")
    revision = first.header.revision
    assert client.call("HashKV", revision=revision).hash == first.hash
    client.put(k(), b"2")
    assert client.call("HashKV").hash != first.hash
    assert client.call("HashKV", revision=revision).hash == first.hash
    assert client.error("HashKV", revision=revision + 2) == FUTURE
    compact_at(client, revision)
    assert client.error("HashKV", revision=revision) == COMPACTED
    assert client.call("HashKV").compact_revision == revision
    client.call("Hash")


def test_snapshot_is_a_stream(client):
    parts = client.snapshot()
    assert sum(len(part.blob) for part in parts) > 0
    left = [part.remaining_bytes for part in parts]
    assert left == sorted(left, reverse=True) and left[-1] == 0


def test_alarm_list_is_empty(client):
    assert not client.call("Alarm").alarms
    assert not client.call("Alarm", action=2, alarm=1).alarms


def test_quota(serve_own):
    """Full: the alarm is raised, writes are refused, deletions, compaction and reads are not; after a
    compaction and a disarm it goes on."""
    client = serve_own(quota=16 << 20).client()
    full = "RESOURCE_EXHAUSTED: etcdserver: mvcc: database space exceeded"
    revision = 0

    def fill():
        nonlocal revision
        try:
            revision = client.put(b"big", b"x" * 1_000_000).header.revision
            return False
        except Exception as e:
            assert str(e) == full
            return True
    wait_until("the quota is reached", fill, 60)
    assert [a.alarm for a in client.call("Alarm").alarms] == [1]
    assert client.error("Put", key=b"a") == full
    assert client.error("Txn", success=[put(b"a")]) == full
    assert client.error("LeaseGrant", TTL=100) == full
    assert client.get(b"big").count == 1
    assert client.delete(b"big").deleted == 1
    client.call("Compact", revision=client.revision(), physical=True)
    client.call("Defragment")
    member = client.call("Alarm").alarms[0].memberID

    def disarmed():
        client.call("Alarm", action=2, memberID=member, alarm=1)
        return not client.call("Alarm").alarms
    wait_until("alarm is off", disarmed)
    client.put(b"a")


def test_unknown_method(client):
    for path in ("/etcdserverpb.KV/Nothing", "/nothing.At/All"):
        with pytest.raises(CallError) as e:
            client.raw(path)
        assert e.value.code == "UNIMPLEMENTED"


def test_numbers_are_whole(client, k):
    """64 bits where etcd has them."""
    big = (1 << 63) - 1
    assert client.error("Range", key=k(), revision=big) == FUTURE
    assert client.call("LeaseGrant", TTL=100, ID=big).ID == big
    client.call("LeaseRevoke", ID=big)
    assert client.get(k(), b"\0", limit=big).count >= 0
    assert math.isfinite(client.get(k(), max_create_revision=big).count)
