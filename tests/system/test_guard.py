# SPDX-License-Identifier: PostgreSQL
"""Guard rails: a lost slot and the two answers to it, at every step of the way; WAL that is never held
for an idle database; a server that stops fast."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from proxy import TcpProxy
from rawmqtt import RawClient
from suite import as_user, external, wait_until

SLOT = "howdah_test"
GAP = "$SYS/howdah/gap"


def one(pg, sql, *args, dbname="howdah"):
    conn = pg.connect(dbname)
    try:
        cur = conn.cursor()
        cur.execute(sql, args or None)
        row = cur.fetchone() if cur.description else None
        return row[0] if row else None
    finally:
        conn.close()


def make_f(pg):
    one(pg, "CREATE TABLE f (id int PRIMARY KEY, a text)")
    one(pg, "SELECT howdah_mqtt.publish_table('f'::regclass, 'f/{id}')")


def with_table(make_suite, make_postgres, walstreamd="", brokerd="", settings="", initdb=()):
    """A suite on a server of its own, so that the server can be looked at while the suite is down."""
    pg, suite = external(make_suite, make_postgres, server={"settings": settings, "initdb": initdb},
                         walstreamd=walstreamd, brokerd=brokerd)
    make_f(pg)
    return pg, suite


def acknowledged(pg):
    """Waits until the slot stands at the server's end, and returns that."""
    end = one(pg, "SELECT pg_current_wal_lsn()")
    wait_until("all is acknowledged", lambda: one(
        pg, f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'"),
        30)
    return end


def drop_slot(pg):
    wait_until("slot is free", lambda: one(
        pg, f"SELECT active_pid IS NULL FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))
    one(pg, f"SELECT pg_drop_replication_slot('{SLOT}')")


def gap_messages(sub):
    return [json.loads(m["payload"]) for m in sub.snapshot() if m["topic"] == GAP]


def ids(sub):
    return [json.loads(m["payload"])["new"]["id"] for m in sub.snapshot() if m["topic"] != GAP]


def gap_rows(pg):
    conn = pg.connect()
    cur = conn.cursor()
    cur.execute("SELECT from_lsn::text, to_lsn::text, told_at IS NOT NULL, reason FROM howdah.gap"
                " ORDER BY id")
    rows = cur.fetchall()
    conn.close()
    return rows


def told_once(pg, suite):
    """The one gap is closed and told; returns its row. brokerd has counted it once."""
    wait_until("the gap is told", lambda: gap_rows(pg) and gap_rows(pg)[-1][2], 60)
    suite.wait_up()
    rows = gap_rows(pg)
    assert len(rows) == 1, rows
    wait_until("it is counted", lambda: suite.stat("brokerd", "changes_gaps") == 1)
    assert "are missing" in suite.status("brokerd")["text"]
    return rows[0]


def follows(pg, suite, row):
    sub = suite.subscribe("f/#")
    one(pg, "INSERT INTO f VALUES (%s)", row)
    wait_until(f"row {row}", lambda: row in ids(sub))


def test_fast_shutdown(make_suite, make_postgres):
    """pg_ctl stop -m fast, with a subscriber that owes an acknowledgement."""
    pg, suite = with_table(make_suite, make_postgres)
    client = RawClient(suite.mqtt_port, "silent")
    client.subscribe("f/#")
    one(pg, "INSERT INTO f VALUES (1)")
    client.receive_publish()
    began = time.monotonic()
    subprocess.run(as_user([f"{pg.bindir}/pg_ctl", "stop", "-m", "fast", "-t", "60", "-D", pg.data]),
                   check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    client.close()
    pg.process.wait(10)
    assert took < 5, f"the server took {took:.1f} s to stop"


def test_slot_dropped_under_the_suite(make_suite, make_postgres):
    """recreate: the rows of the gap do not come, the gap does, before anything after it."""
    pg, suite = with_table(make_suite, make_postgres, 'lost_slot = "recreate";')
    sub = suite.subscribe("f/#", GAP)
    one(pg, "INSERT INTO f VALUES (1)")
    sub.wait_count(1)
    acked = acknowledged(pg)
    # The walsender cannot send row 2, then its slot goes away.
    walsender = one(pg, f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
    conn = pg.connect()
    cur = conn.cursor()
    os.kill(walsender, signal.SIGSTOP)
    cur.execute("INSERT INTO f VALUES (2)")
    cur.execute("SELECT pg_current_wal_lsn()::text")
    missed = cur.fetchone()[0]
    pid = suite.kill("walstreamd", signal.SIGSTOP)
    cur.execute("SELECT pg_terminate_backend(%s)", (walsender,))
    os.kill(walsender, signal.SIGCONT)
    drop_slot(pg)
    os.kill(pid, signal.SIGCONT)
    row = told_once(pg, suite)
    one(pg, "INSERT INTO f VALUES (3)")
    wait_until("row 3", lambda: 3 in ids(sub))
    assert [m["topic"] for m in sub.snapshot()] == ["f/1", GAP, "f/3"]
    gap, = gap_messages(sub)
    assert (gap["node"], gap["from_lsn"], gap["to_lsn"]) == ("test", row[0], row[1])
    assert abs(gap["at"] - time.time()) < 600
    cur.execute("SELECT %s::pg_lsn <= %s::pg_lsn AND %s::pg_lsn < %s::pg_lsn AND %s::pg_lsn < %s::pg_lsn",
                (acked, gap["from_lsn"], gap["from_lsn"], missed, missed, gap["to_lsn"]))
    assert cur.fetchone()[0], (acked, gap, missed)
    conn.close()
    node, = [r for r in suite.rows("node", "list") if r["name"] == "test"]
    assert (node["gap_from"], node["gap_to"]) == (gap["from_lsn"], gap["to_lsn"])
    wait_until("counted", lambda: suite.stat("walstreamd", "wal_slots_lost") == 1)
    # A reader that comes later is not told again.
    suite.kill("brokerd")
    wait_until("a new brokerd", lambda: suite.status("brokerd").get("restarts") == 1 and suite.is_up())
    follows(pg, suite, 4)
    assert suite.stat("brokerd", "changes_gaps") == 0


def test_slot_invalidated_while_streaming(make_suite, make_postgres):
    """max_slot_wal_keep_size: warned of before, then lost, then made anew."""
    pg, suite = with_table(
        make_suite, make_postgres, 'lost_slot = "recreate"; wal_warn_bytes = "16MB";',
        brokerd='ack_timeout = "10min";', initdb=["--wal-segsize=1"],
        settings="max_slot_wal_keep_size = 24MB\nmax_wal_size = 4MB\nmin_wal_size = 2MB\n"
                 "checkpoint_timeout = 1h")
    client = RawClient(suite.mqtt_port, "silent")
    client.subscribe("f/#")
    sub = suite.subscribe(GAP)
    one(pg, "INSERT INTO f VALUES (1)")
    client.receive_publish()
    conn = pg.connect()
    cur = conn.cursor()
    cur.execute("CREATE TABLE filler (a text)")

    def fill():
        cur.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        cur.execute("TRUNCATE filler")

    def warned():
        fill()
        time.sleep(0.5)
        return "max_slot_wal_keep_size" in suite.log_text()
    wait_until("a warning before it is lost", lambda: suite.rows("wal", "lag") and warned(), 60)
    assert not gap_messages(sub)

    def lost():
        fill()
        cur.execute("CHECKPOINT")
        return suite.stat("walstreamd", "wal_slots_lost") == 1
    wait_until("the slot is lost", lost, 60)
    conn.close()
    row = told_once(pg, suite)
    assert "max_slot_wal_keep_size" in row[3] and len(gap_messages(sub)) == 1
    client.close()
    follows(pg, suite, 2)


def test_full_ring_does_not_hold_up_checkpoints(make_suite, make_postgres):
    """A walsender that cannot write does not hear that it has to end; the checkpoint that gives its slot up would
    wait for it, and no WAL be recycled."""
    pg, suite = with_table(
        make_suite, make_postgres, 'ring_size = "1MB"; spool_limit = "1MB";', brokerd='ack_timeout = "10min";',
        initdb=["--wal-segsize=1"], settings="max_slot_wal_keep_size = 8MB\nmax_wal_size = 2GB\nmin_wal_size = 2MB\n"
                                             "checkpoint_timeout = 1h")
    client = RawClient(suite.mqtt_port, "silent")
    client.subscribe("f/#")
    one(pg, "INSERT INTO f SELECT g, repeat('x', 1500) FROM generate_series(1, 40000) g")
    wait_until("the ring is full", lambda: "the ring is full" in suite.status("walstreamd").get("text", ""), 60)
    conn = pg.connect()
    conn.cursor().execute("SET statement_timeout = '60s'")
    conn.cursor().execute("CHECKPOINT")
    conn.close()
    wait_until("the slot is lost", lambda: "is lost" in suite.status("walstreamd").get("text", ""), 60)
    assert one(pg, "SELECT wal_status FROM pg_replication_slots") == "lost"
    assert "[wal.unreserved]" in suite.log_text()
    client.close()


STEPS = {
    "old slot still there": f"SELECT howdah.slot_lost('test', '{{}}', 'told by the test')",
    "old slot dropped": f"SELECT howdah.slot_lost('test', '{{}}', 'told by the test');"
                        f"SELECT pg_drop_replication_slot('{SLOT}')",
    "new slot not written down": f"SELECT howdah.slot_lost('test', '{{}}', 'told by the test');"
                                 f"SELECT pg_drop_replication_slot('{SLOT}');"
                                 f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("answer", ["stop", "recreate"])
def test_died_half_way(make_suite, make_postgres, step, answer):
    """Whatever the configuration says by then: what was begun is finished, and told."""
    pg, suite = with_table(make_suite, make_postgres)
    suite.stop()
    began = one(pg, "SELECT pg_current_wal_lsn()::text")
    one(pg, "INSERT INTO f VALUES (1)")
    for sql in STEPS[step].split(";"):
        one(pg, sql)
    suite.sections["walstreamd"] = f'lost_slot = "{answer}";'
    suite.write_conf()
    suite.start()
    row = told_once(pg, suite)
    assert row[3] == "told by the test"
    assert one(pg, "SELECT %s::pg_lsn <= %s::pg_lsn AND %s::pg_lsn < %s::pg_lsn", row[0], began, began,
               row[1])
    follows(pg, suite, 2)


def test_died_before_it_was_told(make_suite, make_postgres):
    """The new slot is there, nobody knows of the gap yet: the next life tells, though the slot stands
    where it began."""
    pg, suite = with_table(make_suite, make_postgres)
    suite.stop()
    one(pg, f"SELECT pg_drop_replication_slot('{SLOT}')")
    lsn = one(pg, f"SELECT lsn FROM pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
    one(pg, "SELECT howdah.slot_lost('test', '{}', 'told by the test')")
    one(pg, "SELECT howdah.slot_created('test', %s, 1)", lsn)
    assert gap_rows(pg)[0][1:3] == (lsn, False)
    suite.start()
    told_once(pg, suite)
    follows(pg, suite, 2)
    # Known is known.
    suite.stop()
    suite.start()
    suite.wait_up()
    follows(pg, suite, 3)
    assert suite.stat("brokerd", "changes_gaps") == 0


def test_killed_again_and_again(make_suite, make_postgres):
    """A transaction keeps the new slot from being made; walstreamd is killed while it waits."""
    pg, suite = with_table(make_suite, make_postgres, 'lost_slot = "recreate";')
    acked = acknowledged(pg)
    writer = pg.connect()
    writer.autocommit = False
    writer.cursor().execute("INSERT INTO f VALUES (1)")
    pid = suite.kill("walstreamd", signal.SIGSTOP)
    one(pg, f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
    drop_slot(pg)
    os.kill(pid, signal.SIGKILL)
    senders = {0}
    for _ in range(3):
        # The last life's walsender waits for the transaction and notices nothing: it is ended.
        sender = wait_until("the slot is being made by a new walsender", lambda: one(
            pg, "SELECT active_pid FROM pg_replication_slots WHERE active_pid <> ALL (%s)",
            list(senders)), 60)
        senders.add(sender)
        assert [r[1:3] for r in gap_rows(pg)] == [(None, False)]
        suite.kill("walstreamd")
    writer.commit()
    writer.close()
    row = told_once(pg, suite)
    assert one(pg, "SELECT %s::pg_lsn <= %s::pg_lsn", row[0], acked)
    follows(pg, suite, 2)


def findings_of(suite):
    """What doctor says is wrong with what is published."""
    done = suite.pgctl_raw("-j", "doctor")
    return [row for row in map(json.loads, done.stdout.splitlines())
            if row["check"] in ("publication", "mappings") and row["result"] == "error"]


def test_publication_dropped_under_the_suite(make_suite, make_postgres):
    """Nothing is passed over, and none is made anew that would carry nothing: doctor says what mends it."""
    pg, suite = with_table(make_suite, make_postgres)
    sub = suite.subscribe("f/#")
    follows(pg, suite, 1)
    acknowledged(pg)
    one(pg, "DROP PUBLICATION howdah")
    one(pg, "INSERT INTO f VALUES (2)")

    def text():
        return suite.status("walstreamd").get("text", "")

    wait_until("it says so", lambda: "publication howdah is not there" in text())
    assert 'publication "howdah"' in suite.log_text() and "pgctl node remove" in suite.log_text()
    assert one(pg, "SELECT count(*) FROM pg_publication WHERE pubname = 'howdah'") == 0
    mended = findings_of(suite)
    assert [row["check"] for row in mended] == ["publication", "mappings"]
    one(pg, "CREATE PUBLICATION howdah")
    wait_until("still not right", lambda: "publication howdah lacks howdah_mqtt.publish_mapping" in text())
    one(pg, "DROP PUBLICATION howdah")
    for row in mended:
        one(pg, row["remedy"])
    assert findings_of(suite) == []
    wait_until("what is in the slot cannot be had", lambda: "pgctl node remove" in text())
    suite.pgctl("node", "remove", "test", "--yes")
    suite.wait_up()
    follows(pg, suite, 3)
    one(pg, "CREATE TABLE g (id int PRIMARY KEY)")
    one(pg, "SELECT howdah_mqtt.publish_table('g'::regclass, 'f/g/{id}')")
    one(pg, "INSERT INTO g VALUES (4)")
    wait_until("a new mapping is followed", lambda: 4 in ids(sub))
    assert 2 not in ids(sub)


def write_much(pg, first, last, sub):
    """So that what comes next on another history stands before it."""
    one(pg, "INSERT INTO f SELECT g, repeat('x', 1000) FROM generate_series(%s, %s) g", first, last)
    wait_until("all has come", lambda: last in ids(sub), 60)


def slot_is_behind_the_server(pg):
    return one(pg, f"SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM pg_replication_slots"
                   f" WHERE slot_name = '{SLOT}'")


def test_server_restored_to_an_earlier_state(make_suite, make_postgres):
    """The same LSNs are other changes then: none of them passes for one that was seen."""
    pg, suite = with_table(make_suite, make_postgres)
    sub = suite.subscribe("f/#")
    write_much(pg, 1, 10, sub)
    acknowledged(pg)
    pg.stop()
    subprocess.run(["cp", "-a", pg.data, f"{pg.root}/backup"], check=True)
    pg.start()
    suite.wait_up()
    write_much(pg, 11, 3000, sub)
    was = acknowledged(pg)
    pg.stop()
    shutil.rmtree(pg.data)
    os.rename(f"{pg.root}/backup", pg.data)
    pg.start()
    suite.wait_up()
    for row in (4000, 4001):
        one(pg, "INSERT INTO f VALUES (%s)", row)
        wait_until(f"row {row}", lambda: row in ids(sub))
    assert one(pg, f"SELECT pg_current_wal_lsn() < '{was}'")
    assert slot_is_behind_the_server(pg)
    assert "[wal.went_back]" in suite.log_text()
    follows(pg, suite, 4002)


@pytest.fixture
def two_servers(make_suite, make_postgres):
    """A suite, the proxy that it reaches its server by, that server, and another one that the proxy may lead to;
    each has f. What comes of f from the first: rows 1 to 20000."""
    proxies = []

    def conninfo(pg):
        proxies.append(TcpProxy(pg.port))
        return f"host=127.0.0.1 port={proxies[0].port} user=postgres dbname=howdah"

    pg, suite = external(make_suite, make_postgres, conninfo=conninfo)
    other = make_postgres()
    admin = other.connect("postgres")
    admin.cursor().execute("CREATE DATABASE howdah")
    admin.close()
    make_f(pg)
    sub = suite.subscribe("f/#")
    write_much(pg, 1, 20000, sub)
    yield suite, sub, proxies[0], pg, other
    suite.close()
    proxies[0].close()


def lead_to(proxy, pg):
    proxy.target = ("127.0.0.1", pg.port)
    proxy.cut()


def set_up_other(suite, proxy, other):
    lead_to(proxy, other)
    wait_until("the schema is missed", lambda: "db init" in suite.status("walstreamd").get("text", ""))
    suite.pgctl("db", "init")
    suite.wait_up()
    make_f(other)


def test_another_server_behind_the_conninfo(two_servers):
    """Its timeline has the same number; it is followed from its own slot on."""
    suite, sub, proxy, pg, other = two_servers
    was = acknowledged(pg)
    set_up_other(suite, proxy, other)
    for row in (30000, 30001):
        one(other, "INSERT INTO f VALUES (%s)", row)
        wait_until(f"row {row}", lambda: row in ids(sub))
    assert one(other, f"SELECT pg_current_wal_lsn() < '{was}'")
    assert slot_is_behind_the_server(other)


def test_slot_wanted_while_the_old_stream_ends(two_servers):
    """The session of a server without the slot is there before the stream of the one that fell silent is given up."""
    suite, sub, proxy, pg, other = two_servers
    set_up_other(suite, proxy, other)
    lead_to(proxy, pg)
    wait_until("the first is followed again", lambda: one(
        pg, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))
    drop_slot(other)
    one(other, "DELETE FROM howdah.node")
    wait_until("streaming", lambda: suite.status("walstreamd").get("text", "").startswith("streaming"))
    proxy.target = ("127.0.0.1", other.port)
    proxy.strand()
    wait_until("a slot is in use", lambda: one(
        other, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))
    one(other, "INSERT INTO f VALUES (40000)")
    wait_until("row 40000", lambda: 40000 in ids(sub))
    assert "cannot create the slot" not in suite.log_text()


def test_node_removed_under_the_suite(make_suite, make_postgres):
    """In full run, and in the middle of a slot's making: a first start follows, no gap is left."""
    pg, suite = with_table(make_suite, make_postgres, 'lost_slot = "recreate";')
    registered = one(pg, "SELECT registered_at FROM howdah.node")
    suite.pgctl("-j", "node", "remove", "test")
    wait_until("a new node", lambda: one(
        pg, "SELECT registered_at > %s AND slot_lsn IS NOT NULL FROM howdah.node", registered), 60)
    suite.wait_up()
    follows(pg, suite, 1)
    writer = pg.connect()
    writer.autocommit = False
    writer.cursor().execute("INSERT INTO f VALUES (2)")
    suite.kill("walstreamd", signal.SIGSTOP)
    one(pg, f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
    drop_slot(pg)
    suite.kill("walstreamd")
    wait_until("a gap is open", lambda: gap_rows(pg), 60)
    suite.pgctl("-j", "node", "remove", "test")
    writer.commit()
    writer.close()
    suite.wait_up()
    follows(pg, suite, 3)
    assert gap_rows(pg) == []


@pytest.mark.parametrize("heartbeat", ["0s", "1s"])
def test_idle_database_holds_no_wal(make_suite, make_postgres, heartbeat, report):
    """Another database of the server writes; ours is quiet. The slot follows, with or without."""
    pg, suite = with_table(make_suite, make_postgres, f'heartbeat = "{heartbeat}";',
                         initdb=["--wal-segsize=1"],
                         settings="max_wal_size = 8MB\nmin_wal_size = 2MB\nwal_keep_size = 0")
    one(pg, "CREATE DATABASE busy", dbname="postgres")
    conn = pg.connect("busy")
    cur = conn.cursor()
    cur.execute("CREATE TABLE t (a text)")

    def held(what):
        cur.execute(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), {what})::bigint"
                    " FROM pg_replication_slots WHERE slot_name = %s", (SLOT,))
        return cur.fetchone()[0]

    def write():
        cur.execute("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        cur.execute("TRUNCATE t")
    worst = 0
    for _ in range(40):
        write()
        worst = max(worst, held("restart_lsn"))
    # A server that does not come to move the slot, though nobody owes it anything.
    cur.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", (SLOT,))
    sender, = cur.fetchone()
    os.kill(sender, signal.SIGSTOP)

    def looked():
        write()
        suite.rows("wal", "lag")
        return suite.stat("walstreamd", "wal_heartbeats") > 0
    if heartbeat == "0s":
        for _ in range(8):
            assert not looked()
    else:
        wait_until("a heartbeat", looked, 30)
    os.kill(sender, signal.SIGCONT)
    began = time.monotonic()
    wait_until("the slot follows", lambda: held("confirmed_flush_lsn") < 1 << 20, 60)
    wait_until("the WAL is let go of", lambda: held("restart_lsn") < 4 << 20, 90)
    report(f"idle database, over 220 MB by another one, heartbeat {heartbeat}: at most {worst >> 20} MB held,"
           f" let go of within {time.monotonic() - began:.0f} s,"
           f" heartbeats {suite.stat('walstreamd', 'wal_heartbeats')}")
    conn.close()


def test_open_transaction_is_named(make_suite, make_postgres):
    """An old transaction that writes keeps WAL, and no heartbeat helps: the status says whose it is."""
    pg, suite = with_table(make_suite, make_postgres, 'wal_warn_bytes = "16MB"; heartbeat = "1s";',
                         initdb=["--wal-segsize=1"], settings="max_wal_size = 8MB\nmin_wal_size = 2MB")
    old = pg.connect()
    old.autocommit = False
    old.cursor().execute("CREATE TABLE held_open (a int)")
    conn = pg.connect()
    cur = conn.cursor()
    cur.execute("CREATE TABLE t (a text)")
    for _ in range(10):
        cur.execute("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        cur.execute("TRUNCATE t")
        cur.execute("CHECKPOINT")
    pid = old.info.backend_pid
    wait_until("the status names it", lambda: suite.rows("wal", "lag") and
               f"process {pid}" in suite.status("walstreamd").get("text", ""), 60, 1)
    old.rollback()
    old.close()

    def quiet():
        cur.execute("CHECKPOINT")
        return suite.rows("wal", "lag") and suite.status("walstreamd").get("text", "") == "streaming"
    wait_until("all is well again", quiet, 90, 1)
    conn.close()
