# SPDX-License-Identifier: PostgreSQL
"""Processes that die, peers that misbehave, a database that is away: nothing acknowledged is lost,
the others are unharmed, and the message says what to do."""
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

import paho.mqtt.client as mqtt
import psycopg2
import pytest

from proxy import TcpProxy
from rawmqtt import RawClient, text
from suite import USER, external, wait_until


def confirmed(suite):
    return suite.sql("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots")[0][0]


def mapped(suite, name="f"):
    suite.sql(f"CREATE TABLE IF NOT EXISTS {name} (id int PRIMARY KEY, a text)")
    suite.sql("SELECT howdah_mqtt.publish_table(%s::regclass, %s)", name, name + "/{id}")


def mapped_on(pg):
    """The table f of an external server, mapped, and a cursor there."""
    cur = pg.connect().cursor()
    cur.execute("CREATE TABLE f (id int PRIMARY KEY, a text)")
    cur.execute("SELECT howdah_mqtt.publish_table('f'::regclass, 'f/{id}')")
    return cur


def test_brokerd_killed_before_puback(make_suite):
    """confirmed_flush is not past the first change that lacks a PUBACK, as long as there is no new
    brokerd to say otherwise; mappings are unchanged."""
    suite = make_suite()
    mapped(suite)
    mappings = suite.rows("mqtt", "map", "list")
    assert len(mappings) == 1
    client = RawClient(suite.mqtt_port, "holder")
    client.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (1, 'first')")
    first_lsn = suite.sql("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
    topic, packet_id, _ = client.receive_publish()
    assert topic == "f/1" and packet_id
    suite.sql("INSERT INTO f VALUES (2, 'second')")
    assert client.receive_publish()[0] == "f/2"
    assert confirmed(suite) < first_lsn
    before = suite.status("brokerd")["generation"]
    suite.kill("brokerd")
    client.close()
    while True:
        position = confirmed(suite)
        now = suite.status("brokerd")
        if now.get("state") == "UP" and now["generation"] > before:
            break
        assert position < first_lsn
    wait_until("suite is up", suite.is_up)
    assert suite.status("brokerd")["restarts"] == 1
    assert suite.rows("mqtt", "map", "list") == mappings
    # Offline clients hold nothing: with nobody subscribed the slot moves on. New rows come for certain.
    sub = suite.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (3, 'third')")
    wait_until("third", lambda: any(p["new"]["id"] == 3 for p in sub.payloads()))


def test_orderly_stop_before_puback(make_suite, make_postgres):
    """A stop in good order ends the sessions, and does not take that for their PUBACKs: what they
    still owe, and what is committed meanwhile, comes again."""
    pg, suite = external(make_suite, make_postgres)
    cur = mapped_on(pg)
    client = RawClient(suite.mqtt_port, "owes")
    client.subscribe("f/#")
    cur.execute("INSERT INTO f VALUES (1)")
    assert client.receive_publish()[0] == "f/1"
    cur.execute("SELECT pg_current_wal_lsn()")
    lsn = cur.fetchone()[0]
    suite.stop()
    cur.execute("SELECT confirmed_flush_lsn < %s FROM pg_replication_slots", (lsn,))
    assert cur.fetchone()[0]
    client.close()
    cur.connection.close()


def test_acknowledged_after_puback(make_suite):
    suite = make_suite()
    mapped(suite)
    client = RawClient(suite.mqtt_port, "late")
    client.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (1, 'x')")
    lsn = suite.sql("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
    _, packet_id, _ = client.receive_publish()
    time.sleep(1)  # what must not happen cannot be waited for
    assert confirmed(suite) < lsn
    client.puback(packet_id)
    wait_until("slot moves on", lambda: confirmed(suite) >= lsn)


def test_ack_timeout(make_suite):
    suite = make_suite(brokerd='ack_timeout = "2s";')
    mapped(suite)
    client = RawClient(suite.mqtt_port, "silent")
    client.subscribe("f/#")
    other = suite.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (1, 'x')")
    lsn = suite.sql("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
    assert client.closed_by_server()
    wait_until("slot moves on", lambda: confirmed(suite) >= lsn)
    other.wait_count(1)
    assert suite.stat("brokerd", "mqtt_ended_ack_timeout") == 1


def test_half_open_client(make_suite):
    """A client that vanished without a word ends by keep-alive."""
    suite = make_suite()
    client = RawClient(suite.mqtt_port, "gone", keepalive=1)
    began = time.monotonic()
    assert client.closed_by_server()
    assert 1 <= time.monotonic() - began < 5


def test_slow_client_harms_nobody(make_suite):
    """A QoS 1 subscriber that does not read: others go on, PostgreSQL's slot waits, then it is
    disconnected by ack_timeout and all is well."""
    suite = make_suite(brokerd='ack_timeout = "5s";')
    mapped(suite)
    slow = RawClient(suite.mqtt_port, "slow", receive_buffer=4096)
    slow.subscribe("f/#")
    fast = suite.subscribe("f/#")
    chat = suite.subscribe("chat/#")
    suite.sql("INSERT INTO f SELECT g, repeat('x', 500) FROM generate_series(1, 50000) g")
    suite.publish("chat/a", "still here", qos=0)
    chat.wait_count(1)
    fast.wait_count(50000, 120)
    slow.close()


@pytest.mark.parametrize("packet", [
    b"\x00\x00", b"\xf0\x00\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff\x7f",
    b"\x10\x0c" + text("MQTT") + b"\x09\x02\x00\x00\x00\x00", b"\x30\x03\x00\x01a", b"\xc0\x00",
    b"\x10\xff\xff\xff\x7f" + b"\x00" * 100])
def test_malicious_client(suite, packet):
    bad = socket.create_connection(("127.0.0.1", suite.mqtt_port))
    bad.settimeout(15)
    bad.sendall(packet)
    try:
        while bad.recv(4096):
            pass
    except ConnectionResetError:
        pass
    bad.close()
    good = RawClient(suite.mqtt_port, "good")
    good.close()


def test_postgres_restarts_under_a_subscriber(make_suite):
    suite = make_suite()
    mapped(suite)
    sub = suite.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (1, 'x')")
    sub.wait_count(1)
    old = suite.kill("postmaster", signal.SIGINT)
    wait_until("a new postmaster", lambda: suite.postmaster_pid() not in (0, old) and suite.is_up(), 60)
    suite.sql("INSERT INTO f VALUES (2, 'y')")
    wait_until("row 2", lambda: any(p["new"]["id"] == 2 for p in sub.payloads()))


def test_external_database(make_suite, make_postgres):
    pg = make_postgres()
    admin = pg.connect("postgres")
    admin.cursor().execute("CREATE DATABASE howdah")
    suite = make_suite(postgres=f'mode = "external"; conninfo = "{pg.conninfo()}";', start=False)
    suite.start()
    # Before the schema is there: a clear text, no restart loop.
    wait_until("walstreamd says what is missing", lambda: "pgctl db init" in
               suite.status("walstreamd").get("text", ""))
    suite.pgctl("db", "init")
    suite.wait_up()
    cur = mapped_on(pg)
    conn = cur.connection
    sub = suite.subscribe("f/#")
    cur.execute("INSERT INTO f VALUES (1)")
    sub.wait_count(1)
    # A fast shutdown is not held up by us.
    began = time.monotonic()
    conn.close()
    admin.close()
    pg.stop(signal.SIGINT)
    assert time.monotonic() - began < 8
    pg.start()
    suite.wait_up()
    conn = pg.connect()
    conn.cursor().execute("INSERT INTO f VALUES (2)")
    sub.wait_count(2)


def test_message_of_unknown_kind(make_suite, make_postgres):
    """What cannot be understood is not passed over: it is logged and counted, the stream begins anew, less
    and less soon while it breaks at the same place, and what the server really has arrives once."""
    proxies = []

    def conninfo(pg):
        proxies.append(TcpProxy(pg.port))
        return f"host=127.0.0.1 port={proxies[0].port} user=postgres dbname=howdah"

    pg, suite = external(make_suite, make_postgres, conninfo=conninfo)
    proxy = proxies[0]
    cur = mapped_on(pg)
    conn = cur.connection
    sub = suite.subscribe("f/#")
    cur.execute("INSERT INTO f VALUES (1)")
    sub.wait_count(1)
    cur.execute("SELECT pg_current_wal_lsn() - '0/0'")
    lsn = int(cur.fetchone()[0])
    body = struct.pack("!cQQQ", b"w", lsn, lsn, 0) + b"z of a later protocol"

    def say():
        """How long it takes until there is a stream again."""
        time.sleep(0.3)  # the server has said what it has to say
        errors, streams = (suite.stat("walstreamd", s) for s in ("wal_protocol_errors", "wal_streams"))
        proxy.say(struct.pack("!cI", b"d", len(body) + 4) + body)
        began = time.monotonic()
        wait_until("counted", lambda: suite.stat("walstreamd", "wal_protocol_errors") == errors + 1)
        wait_until("streaming again", lambda: suite.stat("walstreamd", "wal_streams") > streams)
        return time.monotonic() - began

    waits = []
    while not waits or waits[-1] < 2.2:
        assert len(waits) < 9, waits
        waits.append(say())
        if conn.server_version < 150000:
            break  # walstreamd's own UPDATE before each stream comes as an empty transaction: it was of use
    assert 'that cannot be followed, it begins with "z of a later protocol"' in suite.log_text()
    cur.execute("INSERT INTO f SELECT g FROM generate_series(2, 20) g")
    sub.wait_count(20)
    assert say() < 4  # that was of use; else it were 4.8 s at least
    time.sleep(0.5)
    assert sorted(p["new"]["id"] for p in sub.payloads()) == list(range(1, 21))
    assert suite.stat("walstreamd", "wal_protocol_errors") == len(waits) + 1
    conn.close()
    suite.close()
    proxy.close()


def test_row_that_cannot_be_sent(make_suite, make_postgres):
    """doctor warns of it; the stream that it breaks is asked for less and less often, though the server is
    there again; the operator passes it over, and a reload ends the wait."""
    pg, suite = external(make_suite, make_postgres,
                         database="ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    (found,) = [row for row in suite.rows("doctor") if row["check"] == "encoding"]
    assert found["result"] == "warning" and "SQL_ASCII" in found["finding"] and "UTF8" in found["remedy"]
    cur = mapped_on(pg)
    sub = suite.subscribe("f/#")
    cur.execute("INSERT INTO f VALUES (1, 'x')")
    sub.wait_count(1)

    def streams():
        return suite.log_text().count("[wal.streaming]")

    before = streams()
    cur.execute(r"INSERT INTO f VALUES (2, E'\xff')")
    wait_until("asked for again and again", lambda: streams() >= before + 6, 30)
    wait_until("says why", lambda: 'invalid byte sequence for encoding "UTF8"' in
               suite.status("walstreamd").get("text", ""))

    def sessions():
        cur.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'howdah walstreamd'")
        return cur.fetchall()

    ended = sessions()
    cur.execute("SELECT pg_terminate_backend(%s)", ended[0])
    wait_until("walstreamd is back at the server", lambda: sessions() not in ([], ended), 3)
    time.sleep(1)  # the next try is after 10 s, at the earliest after 7.5
    assert streams() == before + 6
    began = time.monotonic()

    def passed_over():
        try:
            cur.execute("SELECT pg_replication_slot_advance('howdah_test', pg_current_wal_lsn())")
            return True
        except psycopg2.errors.ObjectInUse:  # just being tried
            return False
    wait_until("passed over", passed_over)
    cur.execute("INSERT INTO f VALUES (3, 'y')")
    suite.pgctl("reload")
    sub.wait_count(2)
    assert time.monotonic() - began < 3  # less than what was left of the wait
    assert [p["new"]["id"] for p in sub.payloads()] == [1, 3]
    cur.connection.close()


def test_slot_held_by_a_session(make_suite, make_postgres):
    """Somebody who moves the slot by hand is waited for, not ended like a walsender that was forgotten."""
    pg, suite = external(make_suite, make_postgres)
    cur, session = mapped_on(pg), pg.connect()
    pid = session.info.backend_pid
    sub = suite.subscribe("f/#")
    failed = []

    def peek():
        try:
            session.cursor().execute("SELECT count(*) FROM pg_logical_slot_peek_binary_changes('howdah_test', NULL,"
                                     " NULL, 'proto_version', '1', 'publication_names', 'howdah')")
        except psycopg2.errors.ObjectInUse:
            pass  # walstreamd was quicker
        except psycopg2.Error as e:
            failed.append(e)

    def holder():
        cur.execute("SELECT active_pid FROM pg_replication_slots")
        return cur.fetchone()[0]

    def hold():
        """The thread of the session, which is stopped while it holds the slot; None: it was too quick."""
        cur.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        thread = threading.Thread(target=peek)
        thread.start()
        while thread.is_alive():
            if holder() == pid:
                os.kill(pid, signal.SIGSTOP)
                if holder() == pid:
                    return thread
                os.kill(pid, signal.SIGCONT)
        return None

    thread = None
    while thread is None:
        thread = hold()
    time.sleep(6)  # a walsender is ended after 3
    os.kill(pid, signal.SIGCONT)
    thread.join()
    assert not failed
    session.cursor().execute("SELECT 1")
    suite.wait_up()
    cur.execute("INSERT INTO f VALUES (1)")
    sub.wait_count(1)
    session.close()
    cur.connection.close()


def test_fast_shutdown_with_unacknowledged_subscriber(make_suite, make_postgres):
    pg, suite = external(make_suite, make_postgres)
    cur = mapped_on(pg)
    client = RawClient(suite.mqtt_port, "silent")
    client.subscribe("f/#")
    cur.execute("INSERT INTO f VALUES (1)")
    client.receive_publish()
    cur.connection.close()
    began = time.monotonic()
    pg.stop(signal.SIGINT)
    assert time.monotonic() - began < 10
    client.close()


def test_no_slot_left(make_suite, make_postgres):
    pg = make_postgres(settings="max_replication_slots = 1")
    conn = pg.connect("postgres")
    conn.cursor().execute("CREATE DATABASE howdah")
    conn.cursor().execute("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')")
    suite = make_suite(postgres=f'mode = "external"; conninfo = "{pg.conninfo()}";', start=False)
    suite.start()
    wait_until("control socket", lambda: suite.status())
    suite.pgctl("db", "init")
    wait_until("the remedy is in the status", lambda: "max_replication_slots" in
               suite.status("walstreamd").get("text", ""))
    conn.cursor().execute("SELECT pg_drop_replication_slot('taken')")
    suite.wait_up()
    conn.close()


def test_lost_slot_is_said_and_never_recreated_silently(make_suite):
    suite = make_suite()
    mapped(suite)
    pid = suite.kill("walstreamd", signal.SIGSTOP)
    conn = suite.connect()
    cur = conn.cursor()
    cur.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
    wait_until("slot is free", lambda: suite.sql(
        "SELECT NOT active FROM pg_replication_slots")[0][0])
    cur.execute("SELECT pg_drop_replication_slot('howdah_test')")
    os.kill(pid, signal.SIGCONT)
    wait_until("lost slot in the status", lambda: "pgctl node remove" in
               suite.status("walstreamd").get("text", ""), 30)
    assert suite.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    suite.pgctl("-j", "node", "remove", "test", "--yes")
    suite.wait_up()
    sub = suite.subscribe("f/#")
    suite.sql("INSERT INTO f VALUES (9, 'after the gap')")
    sub.wait_count(1)


def test_second_instance_of_a_node_is_refused(make_suite, make_postgres):
    pg = make_postgres()
    pg.connect("postgres").cursor().execute("CREATE DATABASE howdah")
    postgres = f'mode = "external"; conninfo = "{pg.conninfo()}";'
    one = make_suite(postgres=postgres, start=False)
    one.start()
    wait_until("control socket", lambda: one.status())
    one.pgctl("db", "init")
    one.wait_up()
    two = make_suite(postgres=postgres, start=False)
    two.start()
    wait_until("second instance is held", lambda: two.status("walstreamd").get("state") == "HELD")
    assert "node" in two.log_text()
    assert one.is_up()


def test_database_that_does_not_exist(make_suite, make_postgres):
    """A wrong conninfo is no restart loop: the worker is held, says why, and a reload tries again."""
    pg = make_postgres()
    suite = make_suite(postgres=f'mode = "external"; conninfo = "{pg.conninfo("nosuch")}";', start=False)
    suite.start()
    wait_until("walstreamd is held", lambda: suite.status("walstreamd").get("state") == "HELD")
    assert "nosuch" in suite.log_text()
    admin = pg.connect("postgres")
    admin.cursor().execute("CREATE DATABASE nosuch")
    admin.close()
    suite.pgctl("db", "init")
    suite.pgctl_raw("reload")
    suite.wait_up()


def test_database_hangs_and_comes_back(make_suite):
    """Every process of the server stopped: clients stay connected and talk to each other by QoS 0, the
    rows come when it goes on."""
    suite = make_suite()
    mapped(suite)
    sub = suite.subscribe("f/#", "chat/#")
    writer = suite.connect()
    pids = [suite.postmaster_pid()] + [int(p) for p in subprocess.run(
        ["pgrep", "-P", str(suite.postmaster_pid())], stdout=subprocess.PIPE, text=True).stdout.split()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        suite.publish("chat/a", "x", qos=0)
        sub.wait_count(1)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    writer.cursor().execute("INSERT INTO f VALUES (1, 'x')")
    sub.wait_count(2)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to mount a small file system")
def test_full_disk(make_suite):
    """The database's disk is full: no PUBACK, nobody is disconnected; there is room again: PUBACK,
    and the message is in the table once."""
    suite = make_suite(start=False)
    os.mkdir(suite.state_dir)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=0755", "tmpfs", suite.state_dir],
                   check=True)
    try:
        shutil.chown(suite.state_dir, USER, USER)
        suite.start()
        suite.wait_up()
        mapped(suite)
        sub = suite.subscribe("f/#", "chat/#")
        filler = f"{suite.state_dir}/filler"
        with open(filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(b"x" * 65536)
            except OSError:
                pass
        acked = []
        client = mqtt.Client(client_id="full", protocol=mqtt.MQTTv311)
        client.max_inflight_messages_set(1000)
        client.on_publish = lambda c, u, mid: acked.append(mid)
        client.connect("127.0.0.1", suite.mqtt_port)
        client.loop_start()
        sent = 0
        # WAL segments that are there already take some more: publish until no answer comes.
        while True:
            before = len(acked)
            for _ in range(200):
                client.publish("full/a", f"{sent:07d}" + "y" * 20000, qos=1)
                sent += 1
            deadline = time.monotonic() + 3
            while len(acked) < sent and time.monotonic() < deadline:
                time.sleep(0.05)
            if len(acked) == before:
                break
            assert sent < 50000, "the disk was never full"
        suite.publish("chat/a", "alive", qos=0)
        wait_until("QoS 0 goes on", lambda: any(m["topic"] == "chat/a" for m in sub.snapshot()))
        os.unlink(filler)
        wait_until("every publish is acknowledged", lambda: len(acked) == sent, 120)
        client.loop_stop()
        client.disconnect()
        wait_until("suite is up", suite.is_up, 60)
        rows = suite.sql("SELECT count(*), count(DISTINCT substr(payload, 1, 7)) FROM howdah_mqtt.message"
                         " WHERE topic = 'full/a'")
        assert rows == [(sent, sent)]
        suite.stop()
    finally:
        subprocess.run(["umount", "-l", suite.state_dir], check=True)
