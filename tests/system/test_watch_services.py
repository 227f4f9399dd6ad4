# SPDX-License-Identifier: PostgreSQL
"""
watchd's own side of the API: pages by HTTP/1.1, the snapshot's form, what is not served, pgctl watch,
auto compaction, SQL views, and what is answered while the database is away.
"""
import hashlib
import json
import os
import queue
import signal
import struct
import subprocess
import time
import urllib.error
import urllib.request

import grpc
import pytest

from etcd import CallError, Client, api, op
from suite import wait_until


@pytest.fixture(scope="module")
def watchd(module_suite):
    return module_suite


@pytest.fixture(scope="module")
def module_suite():
    from suite import Suite
    s = Suite(watchd="")
    yield s
    s.close()


@pytest.fixture
def client(watchd):
    c = Client(f"127.0.0.1:{watchd.etcd_port}")
    yield c
    c.close()


def page(suite, path):
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{suite.etcd_port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_pages(watchd, client):
    client.put(b"page", b"1")
    status, body = page(watchd, "/version")
    assert status == 200 and json.loads(body) == {"etcdserver": "3.4.31", "etcdcluster": "3.4.0"}
    assert page(watchd, "/health") == (200, '{"health":"true"}')
    assert page(watchd, "/health?serializable=true") == (200, '{"health":"true"}')
    assert page(watchd, "/nothing") == (404, "404 page not found\n")
    wait_until("the counters have the put", lambda: "howdah_watch_calls_put_total 1\n" in
               page(watchd, "/metrics")[1] or "howdah_watch_calls_put_total" in page(watchd, "/metrics")[1])
    figures = dict(line.rsplit(" ", 1) for line in page(watchd, "/metrics")[1].splitlines()
                   if not line.startswith("#"))
    assert int(figures["process_resident_memory_bytes"]) > 1 << 20
    assert figures["etcd_server_has_leader"] == "1"
    assert int(figures["etcd_debugging_mvcc_keys_total"]) >= 1


def test_health_tells_alarms(watchd, client):
    member = client.call("Status").header.member_id
    answer = client.call("Alarm", action=1, alarm=1)
    assert [(a.memberID, a.alarm) for a in answer.alarms] == [(member, 1)]
    assert page(watchd, "/health") == (503, '{"health":"false"}\n')
    assert page(watchd, "/health?exclude=NOSPACE")[0] == 200
    assert client.call("Status").errors == [f"memberID:{member} alarm:NOSPACE "]
    assert "space exceeded" in client.error("Put", key=b"a", value=b"b")
    assert "space exceeded" in client.error("LeaseGrant", TTL=10)
    client.delete(b"a")
    assert [r["alarm"] for r in watchd.rows("watch", "status")[0]["alarms"]] == ["NOSPACE"]
    assert client.call("Alarm", action=2, alarm=1, memberID=member).alarms[0].alarm == 1
    assert not client.call("Alarm", action=2, alarm=1, memberID=member).alarms
    assert page(watchd, "/health")[0] == 200
    assert client.error("Alarm", action=1, alarm=1, memberID=77).startswith("NOT_FOUND")


def test_what_is_not_served(client):
    for path, text in (("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
                       ("/etcdserverpb.Cluster/MemberAdd",
                        "unknown method MemberAdd for service etcdserverpb.Cluster"),
                       ("/etcdserverpb.Auth/AuthEnable", "unknown service etcdserverpb.Auth"),
                       ("/v3lockpb.Lock/Lock", "unknown service v3lockpb.Lock")):
        with pytest.raises(CallError) as e:
            client.raw(path)
        assert (e.value.code, e.value.details) == ("UNIMPLEMENTED", text)
    with pytest.raises(CallError) as e:
        client.raw("/etcdserverpb.KV/Put", b"\xff\xff\xff")
    assert e.value.code == "INTERNAL" and "unmarshalling" in e.value.details


def nested(depth):
    """A transaction in a transaction, as bytes: no encoder has to go so deep."""
    body = b""
    for _ in range(depth):
        for key in (b"\x22", b"\x12"):
            n, length = len(body), b""
            while n >= 0x80:
                length += bytes([n & 0x7f | 0x80])
                n >>= 7
            body = key + length + bytes([n]) + body
    return body


def test_deeply_nested_transactions(client):
    for depth in (200, 20000):
        with pytest.raises(CallError) as e:
            client.raw("/etcdserverpb.KV/Txn", nested(depth))
        assert e.value.details == "etcdserver: too many operations in txn request"
    client.raw("/etcdserverpb.KV/Txn", nested(100))


def test_members_and_status(watchd, client):
    answer = client.call("MemberList")
    assert [(m.name, list(m.clientURLs)) for m in answer.members] == [
        ("test", [f"http://127.0.0.1:{watchd.etcd_port}"])]
    status = client.call("Status")
    assert status.header.member_id == answer.members[0].ID == status.leader
    assert status.version == "3.4.31" and status.raftTerm == status.header.raft_term > 0
    assert status.raftIndex == status.raftAppliedIndex > 0 and status.dbSize > 0


def test_hashes(client):
    rev = client.put(b"hash", b"1").header.revision
    first = client.call("HashKV")
    assert first.hash == client.call("HashKV", revision=rev).hash == client.call("Hash").hash
    client.put(b"hash", b"2")
    assert client.call("HashKV").hash != first.hash
    assert client.call("HashKV", revision=rev).hash == first.hash
    assert "future revision" in client.error("HashKV", revision=rev + 100)


def test_snapshot(watchd, client, tmp_path):
    keys = {f"snap/{i:05}".encode(): bytes([i % 256]) * 300 for i in range(1500)}
    for key, value in keys.items():
        client.put(key, value)
    lease = client.call("LeaseGrant", TTL=1000, ID=4711).ID
    parts = client.snapshot()
    data = b"".join(p.blob for p in parts)
    assert len(data) % 512 == 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]
    assert parts[-1].remaining_bytes == 0 and parts[0].remaining_bytes == len(data) - 32 - len(parts[0].blob)
    magic, n_leases, n_keys = struct.unpack(">8sQQ", data[:24])
    assert magic == b"HOWDAHW1"
    leases = data[24:24 + n_leases]
    entry = api.LeaseGrantRequest(ID=lease, TTL=1000).SerializeToString()
    assert b"\x0a" + bytes([len(entry)]) + entry in leases
    answer = api.RangeResponse.FromString(data[24 + n_leases:24 + n_leases + n_keys])
    assert {kv.key: kv.value for kv in answer.kvs if kv.key.startswith(b"snap/")} == keys
    subprocess.run(["etcdctl", "--endpoints", f"127.0.0.1:{watchd.etcd_port}", "snapshot", "save",
                    str(tmp_path / "s")], check=True, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert len((tmp_path / "s").read_bytes()) % 512 == 32


# ---- pgctl ------------------------------------------------------------------------------------


def test_pgctl_put_get_del(watchd, client):
    first = watchd.rows("watch", "put", "ctl/a", "one")[0]["revision"]
    watchd.rows("watch", "put", "ctl/b", "two")
    client.put(b"ctl/\xff", b"\xfe")
    row = watchd.rows("watch", "get", "ctl/a")[0]
    assert row == {"key": "ctl/a", "value": "one", "create_revision": first, "mod_revision": first,
                   "version": 1, "lease": 0}
    rows = watchd.rows("watch", "get", "ctl/", "--prefix")
    assert [r.get("key", r.get("key_hex")) for r in rows] == ["ctl/a", "ctl/b", "63746c2fff"]
    assert rows[2]["value_hex"] == "fe"
    rows = watchd.rows("watch", "get", "ctl/", "--prefix", "--keys-only", "--limit", "2")
    assert [r["key"] for r in rows] == ["ctl/a", "ctl/b"] and "value" not in rows[0]
    assert [r["key"] for r in watchd.rows("watch", "get", "ctl/", "--prefix", "--rev", str(first))] == ["ctl/a"]
    assert watchd.rows("watch", "del", "ctl/", "--prefix")[0]["deleted"] == 3
    assert watchd.rows("watch", "del", "ctl/a")[0]["deleted"] == 0
    assert watchd.rows("watch", "get", "ctl/a", "--rev", str(first))[0]["value"] == "one"
    done = watchd.pgctl_raw("watch", "get", "ctl/a")
    assert done.returncode == 1 and "no such key" in done.stderr
    assert "lease not found" in watchd.pgctl_raw("watch", "put", "k", "v", "--lease", "99").stderr
    assert "future revision" in watchd.pgctl_raw("watch", "get", "k", "--rev", "99999").stderr


def test_pgctl_lists_more_than_fits(watchd, client):
    for i in range(3000):
        client.put(f"list/{i:04}".encode(), b"x" * 500)
    rows = watchd.rows("watch", "get", "list/", "--prefix")
    assert [r["key"] for r in rows] == [f"list/{i:04}" for i in range(3000)]
    client.delete(b"list/", b"list0")


def test_pgctl_watch(watchd, client):
    start = client.put(b"seen/0", b"past").header.revision
    process = subprocess.Popen(watchd.pgctl_command("-j", "watch", "watch", "seen/", "--prefix", "--rev", str(start)),
                               stdout=subprocess.PIPE, text=True)
    try:
        assert json.loads(process.stdout.readline())["type"] == "PROGRESS"
        first = json.loads(process.stdout.readline())
        assert (first["type"], first["key"], first["mod_revision"]) == ("PUT", "seen/0", start)
        client.put(b"other", b"")
        client.delete(b"seen/0")
        gone = json.loads(process.stdout.readline())
        assert (gone["type"], gone["key"], gone["mod_revision"]) == ("DELETE", "seen/0", start + 2)
        for i in range(2000):
            client.put(b"seen/1", str(i).encode())
        assert [json.loads(process.stdout.readline())["value"] for _ in range(2000)] == [
            str(i) for i in range(2000)]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_pgctl_watch_for_people(watchd, client):
    start = client.put(b"people/a", b"b\x1bc").header.revision
    client.put(b"people/\xff", b"1")
    client.delete(b"people/a")
    process = subprocess.Popen(watchd.pgctl_command("watch", "watch", "people/", "--prefix", "--rev", str(start)),
                               stdout=subprocess.PIPE, text=True)
    try:
        assert [process.stdout.readline() for _ in range(3)] == [
            f"{start} PUT people/a b\\x1bc\n", f"{start + 1} PUT \\x70656f706c652fff 1\n",
            f"{start + 2} DELETE people/a\n"]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_pgctl_compact(watchd, client):
    rev = [client.put(b"old", str(i).encode()).header.revision for i in range(5)]
    assert watchd.rows("watch", "compact", str(rev[2]))[0]["compact_revision"] == rev[2]
    assert watchd.rows("watch", "get", "old", "--rev", str(rev[2]))[0]["value"] == "2"
    assert "compacted" in watchd.pgctl_raw("watch", "get", "old", "--rev", str(rev[1])).stderr
    assert "compacted" in watchd.pgctl_raw("watch", "compact", str(rev[2])).stderr
    assert "compacted" in client.error("Range", key=b"old", revision=rev[1])
    assert "no history" in watchd.pgctl_raw("watch", "compact", "--before", "7 days").stderr
    assert "interval" in watchd.pgctl_raw("watch", "compact", "--before", "soon").stderr
    assert "revision or" in watchd.pgctl_raw("watch", "compact").stderr
    status = watchd.rows("watch", "status")[0]
    assert status["compact_revision"] == rev[2] and status["up"] and status["keys"] >= 1
    wait_until("all of it is a moment old", lambda: watchd.pgctl_raw(
        "watch", "compact", "--before", "1 second").returncode == 0)


def test_views(watchd, client):
    rev = client.put(b"view/a", b"1").header.revision
    client.put(b"view/b", b"2")
    client.delete(b"view/b")
    rows = watchd.sql("SELECT convert_from(key, 'UTF8'), mod_revision FROM howdah_watch.kv "
                      "WHERE key BETWEEN 'view/' AND 'view0'")
    assert rows == [("view/a", rev)]
    rows = watchd.sql("SELECT type, revision FROM howdah_watch.history WHERE key = 'view/b'::bytea")
    assert rows == [("PUT", rev + 1), ("DELETE", rev + 2)]


# ---- the database is away ------------------------------------------------------------------------


def test_without_the_database(make_suite):
    s = make_suite(watchd='request_timeout = "1s";')
    client = Client(f"127.0.0.1:{s.etcd_port}")
    rev = client.put(b"a", b"1").header.revision
    stream = client.watch()
    stream.create(b"a")
    postmaster = s.postmaster_pid()
    subprocess.run(["kill", "-STOP", str(postmaster)], check=True)
    for line in subprocess.check_output(["pgrep", "-P", str(postmaster)], text=True).split():
        subprocess.run(["kill", "-STOP", line], check=False)
    try:
        begun = time.monotonic()
        assert client.error("Put", key=b"a", value=b"2") == "UNAVAILABLE: etcdserver: request timed out"
        assert client.error("Range", key=b"a") == "UNAVAILABLE: etcdserver: request timed out"
        assert time.monotonic() - begun < 10
        answer = client.get(b"a", serializable=True)
        assert answer.kvs[0].value == b"1" and answer.header.revision == rev
        assert page(s, "/health")[0] == 503
    finally:
        for line in subprocess.check_output(["pgrep", "-P", str(postmaster)], text=True).split():
            subprocess.run(["kill", "-CONT", line], check=False)
        subprocess.run(["kill", "-CONT", str(postmaster)], check=True)
    wait_until("puts are taken again", lambda: puts(client, b"b"), 60)
    assert client.get(b"a").kvs[0].value in (b"1", b"2")
    client.close()


def test_without_a_leader(make_suite, make_postgres):
    """The schema is missing, then it is there, then the server is gone: who asks for a leader is told."""
    pg = make_postgres()
    admin = pg.connect("postgres")
    admin.cursor().execute("CREATE DATABASE howdah")
    admin.close()
    s = make_suite(watchd='request_timeout = "1s";', start=False,
                   postgres=f'mode = "external"; conninfo = "{pg.conninfo()}";')
    s.start()
    wait_until("watchd is up and says what is missing", lambda: "pgctl db init" in
               s.status("watchd").get("text", "") and s.status("watchd")["state"] == "UP")
    s.pgctl("db", "init")
    s.wait_up()
    client = Client(f"127.0.0.1:{s.etcd_port}")
    wait_until("the log is loaded", lambda: puts(client, b"a"), 60)
    asked, patient = client.watch(), client.watch()
    asked.close()
    asked = client.channel.stream_stream("/etcdserverpb.Watch/Watch",
                                         request_serializer=lambda m: m.SerializeToString(),
                                         response_deserializer=api.WatchResponse.FromString)
    request = api.WatchRequest(create_request=api.WatchCreateRequest(key=b"a"))
    requests = queue.Queue()
    requests.put(request)
    answers = asked(iter(requests.get, None), metadata=[("hasleader", "true")])
    assert next(answers).created
    patient.create(b"a")
    pg.stop(signal.SIGINT)
    with pytest.raises(grpc.RpcError) as e:
        next(answers)
    assert (e.value.code().name, e.value.details()) == ("UNAVAILABLE", "etcdserver: no leader")
    requests.put(None)
    with pytest.raises(CallError) as e:
        client.raw("/etcdserverpb.KV/Range", api.RangeRequest(key=b"a", serializable=True).SerializeToString(),
                   metadata=[("hasleader", "true")])
    assert e.value.details == "etcdserver: no leader"
    assert client.get(b"a", serializable=True).count == 1
    status = client.call("Status")
    assert status.leader == 0 and "etcdserver: no leader" in status.errors
    assert client.error("MemberList").startswith("UNAVAILABLE")
    assert not patient.ended
    pg.start()
    wait_until("puts are taken again", lambda: puts(client, b"a"), 60)
    patient.wait_events(1)
    client.close()


def test_reload_of_limits(make_suite):
    s = make_suite(watchd="max_txn_ops = 128;")
    client = Client(f"127.0.0.1:{s.etcd_port}")

    def large(n, start=0):
        return [op(api.PutRequest(key=b"%d" % i, value=b"v")) for i in range(start, start + n)]
    client.txn(success=large(128))
    with pytest.raises(CallError) as e:
        client.txn(success=large(129))
    assert e.value.details == "etcdserver: too many operations in txn request"
    pid = s.pid("watchd")
    with open(s.conf) as f:
        text = f.read().replace("max_txn_ops = 128;", "max_txn_ops = 5000;")
    with open(s.conf, "w") as f:
        f.write(text)
    s.pgctl("reload")
    rev = client.txn(success=large(3000)).header.revision
    assert client.get(b"0", b"a").count == 3000 and client.get(b"2999").kvs[0].mod_revision == rev
    with pytest.raises(CallError) as e:
        client.txn(success=large(2000) + [op(api.DeleteRangeRequest(key=b"19", range_end=b"1A"))])
    assert e.value.details == "etcdserver: duplicate key given in txn request"
    client.txn(success=large(2000, 10000) + [op(api.DeleteRangeRequest(key=b"2", range_end=b"3"))])
    assert s.pid("watchd") == pid
    client.close()


def puts(client, key):
    try:
        return client.put(key, b"x").header.revision
    except CallError as e:
        assert e.unknown
        return 0


def test_stops_in_good_order(make_suite):
    s = make_suite(watchd="")
    client = Client(f"127.0.0.1:{s.etcd_port}")
    stream = client.watch()
    stream.create(b"a")
    client.put(b"a", b"1")
    stream.wait_events(1)
    s.process.send_signal(signal.SIGTERM)
    wait_until("the watch has ended", lambda: stream.ended)
    assert stream.error.code == "UNAVAILABLE"
    client.close()
    s.stop()


def test_auto_compaction(make_suite):
    s = make_suite(watchd='auto_compaction = { mode = "revision"; retention = "10"; };')
    client = Client(f"127.0.0.1:{s.etcd_port}")
    for i in range(40):
        client.put(b"a", str(i).encode())
    wait_until("what is older than ten revisions is gone",
               lambda: s.rows("watch", "status")[0]["compact_revision"] >= 30)
    with open(s.conf) as f:
        text = f.read().replace('mode = "revision"; retention = "10"', 'mode = "periodic"; retention = "1s"')
    with open(s.conf, "w") as f:
        f.write(text)
    s.pgctl("reload")
    last = client.put(b"a", b"last").header.revision
    client.put(b"b", b"")
    wait_until("what is older than a second is gone",
               lambda: s.rows("watch", "status")[0]["compact_revision"] >= last)
    assert client.get(b"a").kvs[0].value == b"last"
    client.close()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="only with another CPU")
def test_busy_poll(make_suite):
    s = make_suite(watchd="busy_poll_us = 10000;")
    client = Client(f"127.0.0.1:{s.etcd_port}")

    def puts():
        for i in range(50):
            client.put(b"a", str(i).encode())

    def polls_pay():
        puts()
        return s.stat("watchd", "watch_busy_polls_caught") > 0

    wait_until("a client alone finds watchd awake", polls_pay)
    assert s.stat("watchd", "watch_busy_polls") >= s.stat("watchd", "watch_busy_polls_caught")
    s.sections["watchd"] = "busy_poll_us = 0;"
    s.write_conf()
    s.pgctl("reload")
    time.sleep(2)  # statistics are up to a second old
    before = s.stat("watchd", "watch_busy_polls")
    puts()
    time.sleep(2)
    assert s.stat("watchd", "watch_busy_polls") == before
    for wrong in ("-1", "10001"):
        s.sections["watchd"] = f"busy_poll_us = {wrong};"
        s.write_conf()
        done = s.pgctl_raw("reload")
        assert done.returncode != 0 and "busy_poll_us" in done.stderr
    client.close()
