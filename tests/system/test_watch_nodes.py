# SPDX-License-Identifier: PostgreSQL
"""watchd only: several nodes on one database, restarts, and a database that is not what it was."""
import os
import signal
import time

import pytest

from etcd import CallError, Nodes, api, kinds, op, serve
from suite import wait_until

pytestmark = pytest.mark.skipif("watchd" not in kinds(), reason="needs watchd")


@pytest.fixture(scope="module")
def nodes():
    n = Nodes(2)
    yield n
    n.close()


@pytest.fixture
def pair(nodes):
    """A client on each node."""
    yield [node.client() for node in nodes.nodes]
    for node in nodes.nodes:
        node.close_clients()


@pytest.fixture
def k(request):
    return lambda name=b"": request.node.originalname.encode() + b"/" + name


# -- two nodes ------------------------------------------------------------------------------------------

def test_every_write_is_read_on_the_other_node(pair, k):
    one, other = pair
    for i in range(200):
        revision = one.put(k(), b"%d" % i).header.revision
        answer = other.get(k())
        assert answer.kvs[0].value == b"%d" % i and answer.header.revision >= revision
        one, other = other, one


def test_revisions_are_dense_over_the_nodes(pair, k):
    first = pair[0].put(k()).header.revision
    for i in range(1, 100):
        assert pair[i % 2].put(k()).header.revision == first + i


def test_watch_on_the_other_node(pair, k):
    one, other = pair
    watch = other.watch()
    watch.create(k(), k()[:-1] + b"0", prev_kv=True)
    one.put(k(b"a"), b"1")
    one.txn(success=[op(api.PutRequest(key=k(b"a"), value=b"2")), op(api.PutRequest(key=k(b"b"), value=b"3"))])
    other.delete(k(b"a"))
    events = watch.wait_events(4)
    assert [(e.type, e.kv.key, e.kv.value, e.prev_kv.value) for e in events] == [
        (0, k(b"a"), b"1", b""), (0, k(b"a"), b"2", b"1"), (0, k(b"b"), b"3", b""), (1, k(b"a"), b"", b"2")]


def test_only_one_of_two_finds_it_absent(pair, k):
    """Both nodes at once; revisions decide, one wins."""
    absent = api.Compare(key=k(), target=api.Compare.CREATE, result=api.Compare.EQUAL, create_revision=0)
    for i in range(50):
        futures = [c.method("Txn").future(api.TxnRequest(compare=[absent], success=[
            op(api.PutRequest(key=k(), value=b"%d" % n))]), timeout=10) for n, c in enumerate(pair)]
        won = [f.result().succeeded for f in futures]
        assert sorted(won) == [False, True], i
        assert int(pair[i % 2].get(k()).kvs[0].value) == won.index(True)
        pair[(i + 1) % 2].delete(k())


def test_compaction_is_everywhere(pair, k):
    one, other = pair
    first = one.put(k(), b"1").header.revision
    last = one.put(k(), b"2").header.revision
    one.call("Compact", revision=last)
    assert "compacted" in other.error("Range", key=k(), revision=first)
    assert other.get(k(), revision=last).kvs[0].value == b"2"
    watch = other.watch()
    created = watch.create(k(), start_revision=first)
    assert watch.wait_canceled(created.watch_id).compact_revision == last


def test_leases_are_everywhere(pair, k):
    """Granted on one node, kept alive and revoked on the other."""
    one, other = pair
    lease = one.call("LeaseGrant", TTL=3).ID
    other.put(k(), lease=lease)
    assert lease in [status.ID for status in other.call("LeaseLeases").leases]
    end = time.monotonic() + 7
    while time.monotonic() < end:
        assert other.keep_alive_once(lease) == 3
        time.sleep(0.5)
    assert one.get(k()).count == 1
    assert list(one.call("LeaseTimeToLive", ID=lease, keys=True).keys) == [k()]
    other.call("LeaseRevoke", ID=lease)
    assert one.get(k()).count == 0 and one.keep_alive_once(lease) == 0


def test_keepalives_on_both_nodes_in_turn(pair, k):
    """The lease moves to and fro, and does not expire meanwhile."""
    lease = pair[0].call("LeaseGrant", TTL=2).ID
    pair[0].put(k(), lease=lease)
    end = time.monotonic() + 6
    turn = 0
    while time.monotonic() < end:
        assert pair[turn % 2].keep_alive_once(lease) == 2
        turn += 1
        time.sleep(0.2)
    assert pair[0].get(k()).count == 1
    wait_until("it expires", lambda: pair[1].get(k()).count == 0, 10)


def test_members_and_hashes(nodes, pair, k):
    pair[0].put(k())
    revision = pair[1].revision()
    lists = [c.call("MemberList").members for c in pair]
    assert lists[0] == lists[1] and [m.name for m in lists[0]] == ["n0", "n1"]
    assert [list(m.clientURLs) for m in lists[0]] == [[f"http://{n.endpoint}"] for n in nodes.nodes]
    headers = [c.get(k()).header for c in pair]
    assert headers[0].cluster_id == headers[1].cluster_id and headers[0].member_id != headers[1].member_id
    assert {h.member_id for h in headers} == {m.ID for m in lists[0]}
    assert len({c.call("HashKV", revision=revision).hash for c in pair}) == 1


def test_alarms_are_everywhere(pair, k):
    one, other = pair
    member = one.get(k()).header.member_id
    one.call("Alarm", action=1, memberID=member, alarm=1)
    assert [(a.memberID, a.alarm) for a in other.call("Alarm").alarms] == [(member, 1)]
    assert "database space exceeded" in other.error("Put", key=k())
    other.call("Alarm", action=2, memberID=member, alarm=1)
    assert not one.call("Alarm").alarms
    one.put(k())


def rung(node):
    return node.suite.stat("watchd", "watch_feed_bells")


def put_that_waits(client, key, node):
    """A put whose commit waits for a standby (the setting counts from when the checkpointer has read it), its key, and
    how often the node's bell had rung before."""
    for i in range(20):
        bells = rung(node)
        name = key + str(i).encode()
        put = client.method("Put").future(api.PutRequest(key=name, value=b"1"), timeout=30)
        time.sleep(0.5)
        if not put.done():
            return put, name, bells
    raise AssertionError("no commit waits for a standby")


def test_the_ring_s_delay_is_known(nodes, pair, k):
    pair[0].put(k())
    wait_until("the other node notes it", lambda: nodes[1].suite.stat("watchd", "watch_feed_delay_p50") > 0)
    assert nodes[1].suite.stat("watchd", "watch_feed_delay_p99") < 60e6


def test_a_commit_that_is_announced_before_it_is_seen(nodes, pair, k):
    """The walsender shows a commit that waits for a synchronous standby; other sessions do not see it yet."""
    one, other = pair
    watch = other.watch()
    watch.create(k(), k() + b"\xff")
    sql = nodes.pg.connect("postgres")
    sql.autocommit = True
    sql.cursor().execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    sql.cursor().execute("SELECT pg_reload_conf()")
    try:
        put, key, bells = put_that_waits(one, k(), nodes[1])
        wait_until("node 1 heard of it", lambda: rung(nodes[1]) > bells, 10)
        time.sleep(0.5)  # whatever could go wrong has
        assert not put.done() and other.get(key, serializable=True).count == 0
        assert key not in [e.kv.key for e in watch.events()]
    finally:
        sql.cursor().execute("ALTER SYSTEM RESET synchronous_standby_names")
        sql.cursor().execute("SELECT pg_reload_conf()")
        sql.close()
    assert put.result().header.revision
    wait_until("the watcher sees it", lambda: key in [e.kv.key for e in watch.events()])


def test_serializable_reads_go_on_without_the_database(nodes, pair, k):
    one = pair[0]
    one.put(k(), b"1")
    nodes.proxies[0].freeze()
    try:
        began = time.monotonic()
        assert one.get(k(), serializable=True).kvs[0].value == b"1"
        assert time.monotonic() - began < 1
        with pytest.raises(CallError) as e:
            one.get(k(), timeout=30)
        assert e.value.code == "UNAVAILABLE" and "request timed out" in e.value.details
        pair[1].put(k(), b"2")
    finally:
        nodes.proxies[0].thaw()
    wait_until("the other's write", lambda: one.get(k(), timeout=2).kvs[0].value == b"2" if nodes[0].ready() else 0, 30)


# -- restarts -------------------------------------------------------------------------------------------

def test_everything_is_there_after_a_kill():
    node = serve("watchd")
    try:
        client = node.client()
        for i in range(20):
            client.put(b"k%d" % (i % 7), b"%d" % i)
        client.delete(b"k3")
        client.call("Compact", revision=10)
        lease = client.call("LeaseGrant", TTL=1000).ID
        client.put(b"leased", lease=lease)
        watch = client.watch()
        watch.create(b"\0", b"\0", start_revision=10)
        before = watch.wait_events(14)[:14]
        kept, hashed = client.get(b"\0", b"\0"), client.call("HashKV").hash
        node.suite.kill("watchd")
        node.wait_ready()
        after = client.get(b"\0", b"\0")
        assert after.kvs == kept.kvs and after.header == kept.header
        assert client.call("HashKV").hash == hashed
        assert "compacted" in client.error("Range", key=b"k1", revision=9)
        assert client.call("LeaseTimeToLive", ID=lease, keys=True).keys == [b"leased"]
        watch = client.watch()
        watch.create(b"\0", b"\0", start_revision=10)
        assert watch.wait_events(14) == before
        assert client.put(b"k1").header.revision == kept.header.revision + 1
    finally:
        node.close()


def test_a_killed_owner_prolongs_its_leases():
    """A crash extends, never shortens; and in the end they expire."""
    node = serve("watchd")
    try:
        client = node.client()
        lease = client.call("LeaseGrant", TTL=4).ID
        client.put(b"a", lease=lease)
        time.sleep(2)
        node.suite.kill("watchd")
        node.wait_ready()
        again = time.monotonic()
        assert client.call("LeaseTimeToLive", ID=lease).TTL >= 2
        wait_until("it expires", lambda: client.get(b"a").count == 0, 20)
        assert time.monotonic() - again > 2
    finally:
        node.close()


def test_stop_in_good_order():
    """What was answered is there; a watcher's stream ends with an error that says to come back."""
    node = serve("watchd")
    try:
        client = node.client()
        watch = client.watch()
        watch.create(b"a")
        revision = client.put(b"a").header.revision
        watch.wait_events(1)
        pid = node.suite.pid("watchd")
        os.kill(pid, signal.SIGTERM)
        wait_until("the stream ends", lambda: watch.ended)
        assert watch.error is None or watch.error.code in ("UNAVAILABLE", "CANCELLED"), watch.error
        node.wait_ready()
        assert client.get(b"a").kvs[0].mod_revision == revision
    finally:
        node.close()


# -- a database that went back --------------------------------------------------------------------------

def test_a_database_that_went_back_is_another_cluster():
    """Revisions that were answered are gone: memory is dropped, watches are cancelled, the id is new."""
    nodes = Nodes(1)
    try:
        client = nodes[0].client()
        client.put(b"a", b"old")
        kept = client.get(b"a")
        conn = nodes.pg.connect()
        cur = conn.cursor()
        cur.execute("SELECT max(seq) FROM howdah_watch.log")
        seq = cur.fetchone()[0]
        client.put(b"a", b"new")
        client.put(b"b", b"new")
        watch = client.watch()
        watch.create(b"a")
        cur.execute("DELETE FROM howdah_watch.log WHERE seq > %s", (seq,))
        conn.close()

        def another():
            try:
                return client.get(b"c", timeout=3).header.cluster_id != kept.header.cluster_id
            except CallError:
                return False
        wait_until("another cluster id", another, 30)
        answer = client.get(b"\0", b"\0")
        assert [(kv.key, kv.value) for kv in answer.kvs] == [(b"a", b"old")]
        wait_until("the watch is over", lambda: watch.ended or [a for a in watch.snapshot() if a.canceled])
        assert client.put(b"a", b"after").header.revision == kept.header.revision + 1
    finally:
        nodes.close()
