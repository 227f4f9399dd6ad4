# SPDX-License-Identifier: PostgreSQL
"""A primary that fails over to its standby: the suite follows by a conninfo of several hosts. With a
failover slot (PostgreSQL 17 on) nothing is missing and nothing comes twice; without, the gap is said
with its bounds."""
import json
import os
import shutil
import signal
import time

import pytest

from rawmqtt import RawClient
from suite import AS_ROOT, USER, Postgres, short_dir, wait_until

HOST_LIST = ("host={0.root},{1.root} port={0.port},{1.port} user=postgres dbname=howdah "
             "target_session_attrs=read-write connect_timeout=2")


class Standby(Postgres):
    """A streaming standby of a primary that is stopped at this moment: its files are copied, so that
    no program of another version is needed. Not started."""

    def __init__(self, primary, settings=""):
        self.bindir = primary.bindir
        self.root = short_dir("hwpg.")
        self.data = f"{self.root}/data"
        self.port = primary.port
        self.process = None
        self.log = open(os.devnull)
        shutil.copytree(primary.data, self.data)
        os.chmod(self.data, 0o700)
        with open(f"{self.data}/postgresql.conf", "a") as f:
            f.write(f"unix_socket_directories = '{self.root}'\nlisten_addresses = ''\n"
                    f"hot_standby_feedback = on\nprimary_slot_name = 'standby'\n"
                    f"primary_conninfo = 'host={primary.root} port={primary.port} user=postgres "
                    f"dbname=postgres application_name=standby'\n{settings}\n")
        open(f"{self.data}/standby.signal", "w").close()
        if AS_ROOT:
            for folder, _, files in os.walk(self.root):
                shutil.chown(folder, USER, USER)
                for name in files:
                    shutil.chown(os.path.join(folder, name), USER, USER)


class Pair:
    """A primary, its standby and, if the server can, what makes logical slots follow."""

    def __init__(self, failover):
        self.primary = Postgres(tcp=False)
        self.version = self.one(self.primary, "SHOW server_version_num", "postgres") // 10000
        self.failover = failover and self.version >= 17
        admin = self.primary.connect("postgres").cursor()
        admin.execute("CREATE DATABASE howdah")
        admin.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        if self.failover:
            admin.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
        admin.connection.close()
        self.primary.stop()
        self.standby = Standby(self.primary,
                               "sync_replication_slots = on" if self.failover else "")
        if self.failover:  # what it copied of the primary's own
            with open(f"{self.standby.data}/postgresql.auto.conf", "w"):
                pass
        self.primary.start()
        self.standby.start()
        self.conninfo = HOST_LIST.format(self.primary, self.standby)

    @staticmethod
    def one(server, sql, dbname="howdah"):
        conn = server.connect(dbname)
        try:
            cur = conn.cursor()
            cur.execute(sql)
            value = cur.fetchone()[0]
            return int(value) if isinstance(value, str) and value.isdigit() else value
        finally:
            conn.close()

    def do(self, server, *statements):
        conn = server.connect()
        try:
            for sql in statements:
                conn.cursor().execute(sql)
        finally:
            conn.close()

    def slot_follows(self):
        """The standby holds the slot, and may use it after a promotion."""
        conn = self.standby.connect("postgres")
        try:
            cur = conn.cursor()
            cur.execute("SELECT synced AND NOT temporary AND invalidation_reason IS NULL"
                        " FROM pg_replication_slots WHERE slot_name = 'howdah_test'")
            row = cur.fetchone()
            return row is not None and row[0]
        finally:
            conn.close()

    def caught_up(self):
        lsn = self.one(self.primary, "SELECT pg_current_wal_lsn()")
        wait_until("the standby has it all", lambda: self.one(
            self.standby, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'"))

    def switch(self):
        """The primary dies; the standby takes over."""
        self.primary.stop(signal.SIGQUIT)
        self.do(self.standby, "SELECT pg_promote()")
        wait_until("the standby is promoted",
                   lambda: not self.one(self.standby, "SELECT pg_is_in_recovery()"))

    def close(self):
        self.standby.close()
        self.primary.close()


@pytest.fixture
def make_pair():
    made = []

    def make(**options):
        made.append(Pair(**options))
        return made[-1]
    yield make
    for pair in made:
        pair.close()


def follow(make_suite, pair, walstreamd="", brokerd=""):
    """The suite on the pair, a mapped table, a subscriber."""
    suite = make_suite(postgres=f'mode = "external"; conninfo = "{pair.conninfo}";',
                       walstreamd=walstreamd, brokerd=brokerd, start=False)
    suite.start()
    wait_until("control socket", lambda: suite.status())
    suite.pgctl("db", "init")
    suite.wait_up()
    pair.do(pair.primary, "CREATE TABLE f (id int PRIMARY KEY)",
            "SELECT howdah_mqtt.publish_table('f'::regclass, 'f/{id}')")
    return suite, suite.subscribe("f/#", "$SYS/howdah/gap")


def ids(sub):
    return [json.loads(m["payload"])["new"]["id"] for m in sub.snapshot()
            if m["topic"].startswith("f/")]


def gaps(sub):
    return [json.loads(m["payload"]) for m in sub.snapshot() if m["topic"] == "$SYS/howdah/gap"]


def doctor_rows(suite):
    """Its exit status says whether something is wrong; here the rows count."""
    return [json.loads(line) for line in suite.pgctl_raw("-j", "doctor").stdout.splitlines()]


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def test_failover_slot(make_suite, make_pair):
    """17+: the slot is on the standby too. Rows before, while nobody acknowledges, and after: each
    once, in order."""
    pair = make_pair(failover=True)
    if not pair.failover:
        pytest.skip("this server has no failover slots")
    suite, sub = follow(make_suite, pair)
    assert pair.one(pair.primary, "SELECT failover FROM pg_replication_slots"
                    " WHERE slot_name = 'howdah_test'")
    pair.do(pair.primary, "INSERT INTO f SELECT generate_series(1, 100)")
    sub.wait_count(100)
    wait_until("the slot is on the standby", pair.slot_follows, 60)
    # Mapped while the slot is followed already: its place in the WAL is known on both sides.
    pair.do(pair.primary, "SELECT howdah_mqtt.publish_table('f'::regclass, 'f/{id}/b', name => 'b')",
            "INSERT INTO f SELECT generate_series(101, 200)")
    sub.wait_count(300)
    pair.caught_up()
    doctor = [row for row in doctor_rows(suite) if row["check"] in ("gap", "failover")]
    assert len(doctor) == 2
    pair.switch()
    pair.do(pair.standby, "INSERT INTO f SELECT generate_series(201, 300)")
    sub.wait_count(500, 60)
    suite.wait_up()
    pair.do(pair.standby, "INSERT INTO f VALUES (301)")
    sub.wait_count(502)
    seen = ids(sub)
    expected = list(range(1, 101)) + [i for i in range(101, 302) for _ in range(2)]
    assert seen == expected
    assert gaps(sub) == []
    assert all(row["result"] == "ok" for row in doctor)
    assert pair.one(pair.standby, "SELECT count(*) FROM howdah.gap") == 0
    # The slot moves on there.
    end = pair.one(pair.standby, "SELECT pg_current_wal_lsn()")
    wait_until("the slot moves on", lambda: pair.one(
        pair.standby, f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots"
        " WHERE slot_name = 'howdah_test'"), 30)


@pytest.mark.parametrize("dies", ["", "walstreamd"])
def test_owed_over_a_failover(make_suite, make_pair, dies):
    """17+: what a subscriber has got and not acknowledged when the primary dies does not come twice,
    and its acknowledgement counts afterwards, with walstreamd's memory and without."""
    pair = make_pair(failover=True)
    if not pair.failover:
        pytest.skip("this server has no failover slots")
    suite, _ = follow(make_suite, pair, brokerd='ack_timeout = "10min";')
    client = RawClient(suite.mqtt_port, "owes")
    client.sock.settimeout(60)
    client.subscribe("f/#")
    wait_until("the slot is on the standby", pair.slot_follows, 60)
    pair.do(pair.primary, "INSERT INTO f VALUES (1)")
    topic, first, _ = client.receive_publish()
    assert topic == "f/1"
    pair.caught_up()
    pair.primary.stop(signal.SIGQUIT)
    if dies:
        suite.kill(dies)
    pair.switch()
    pair.do(pair.standby, "INSERT INTO f VALUES (2)")
    end = pair.one(pair.standby, "SELECT pg_current_wal_lsn()")
    topic, second, _ = client.receive_publish()
    assert topic == "f/2"
    moved = (f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots"
             " WHERE slot_name = 'howdah_test'")
    client.puback(second)
    suite.wait_up()
    assert not pair.one(pair.standby, moved)
    client.puback(first)
    wait_until("the slot moves on", lambda: pair.one(pair.standby, moved), 30)
    client.close()


def test_existing_slot_becomes_failover(make_suite, make_pair):
    """17+: a slot that was made without is altered when the configuration asks for it."""
    pair = make_pair(failover=True)
    if not pair.failover:
        pytest.skip("this server has no failover slots")
    suite, sub = follow(make_suite, pair, "failover_slot = false;")
    query = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'howdah_test'"
    assert not pair.one(pair.primary, query)
    suite.sections["walstreamd"] = "failover_slot = true;"
    suite.write_conf()
    suite.pgctl("reload")
    suite.kill("walstreamd")
    wait_until("the slot is one that standbys keep", lambda: pair.one(pair.primary, query), 30)
    suite.wait_up()
    pair.do(pair.primary, "INSERT INTO f VALUES (1)")
    sub.wait_count(1)


def lose_slot(make_suite, make_pair, walstreamd):
    """A failover without the slot, after rows that were acknowledged."""
    pair = make_pair(failover=False)
    suite, sub = follow(make_suite, pair, "failover_slot = false; " + walstreamd)
    pair.do(pair.primary, "INSERT INTO f VALUES (1)")
    sub.wait_count(1)
    end = pair.one(pair.primary, "SELECT pg_current_wal_lsn()")
    wait_until("the row is acknowledged", lambda: pair.one(
        pair.primary, f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots"
        " WHERE slot_name = 'howdah_test'"))
    pair.caught_up()
    assert any(row["check"] == "failover" and row["result"] == "warning"
               for row in doctor_rows(suite))
    # On the new primary this row is older than any slot of ours can be.
    os.kill(pair.one(pair.primary, "SELECT pid FROM pg_stat_replication"
                     " WHERE application_name = 'howdah_test'"), signal.SIGSTOP)
    pair.do(pair.primary, "INSERT INTO f VALUES (2)")
    pair.caught_up()
    missed = pair.one(pair.primary, "SELECT pg_current_wal_lsn()")
    pair.switch()
    # This one is in the gap too, unless the new slot was faster.
    pair.do(pair.standby, "INSERT INTO f VALUES (3)")
    return pair, suite, sub, end, missed


def test_failover_without_slot_stops(make_suite, make_pair):
    pair, suite, sub, _, _ = lose_slot(make_suite, make_pair, "")
    wait_until("it says so", lambda: "is lost" in suite.status("walstreamd").get("text", ""), 60)
    text = suite.status("walstreamd")["text"]
    assert "failover" in text and "pgctl node remove test" in text and "recreate" in text
    assert pair.one(pair.standby, "SELECT count(*) FROM pg_replication_slots"
                    " WHERE slot_name = 'howdah_test'") == 0
    assert ids(sub) == [1]
    suite.pgctl("-j", "node", "remove", "test")
    suite.wait_up()
    pair.do(pair.standby, "INSERT INTO f VALUES (4)")
    wait_until("row 4", lambda: 4 in ids(sub))
    assert ids(sub) == [1, 4]


def test_failover_without_slot_reports_the_gap(make_suite, make_pair):
    pair, suite, sub, end, missed = lose_slot(make_suite, make_pair, 'lost_slot = "recreate";')
    wait_until("the gap is reported", lambda: gaps(sub), 60)
    suite.wait_up()
    third = pair.one(pair.standby, "SELECT pg_current_wal_lsn()")
    pair.do(pair.standby, "INSERT INTO f VALUES (4)")
    wait_until("row 4", lambda: 4 in ids(sub))
    gap, = gaps(sub)
    came = [3] if 3 in ids(sub) else []
    assert ids(sub) == [1, *came, 4]
    # What came ends behind the gap.
    assert not came or lsn(gap["to_lsn"]) < lsn(third)
    assert gap["node"] == "test" and "failover" in gap["reason"]
    # Its bounds hold all that is missing, and begin where the last acknowledgement is known.
    assert lsn(end) <= lsn(gap["from_lsn"]) < lsn(missed) < lsn(gap["to_lsn"])
    topics = [m["topic"] for m in sub.snapshot()]
    assert topics == ["f/1", "$SYS/howdah/gap", *[f"f/{i}" for i in came], "f/4"]
    conn = pair.standby.connect()
    cur = conn.cursor()
    cur.execute("SELECT from_lsn::text, to_lsn::text, timeline FROM howdah.gap")
    assert cur.fetchall() == [(gap["from_lsn"], gap["to_lsn"], 2)]
    wait_until("it is written down that it was told",
               lambda: pair.one(pair.standby, "SELECT told_at IS NOT NULL FROM howdah.gap"))
    conn.close()
    row = next(r for r in suite.rows("node", "list") if r["name"] == "test")
    assert row["gap_from"] == gap["from_lsn"] and row["gap_to"] == gap["to_lsn"]
    assert any(row["check"] == "gap" and gap["from_lsn"] in row["finding"]
               for row in doctor_rows(suite))
    wait_until("it is counted", lambda: suite.stat("brokerd", "changes_gaps") == 1)
    assert gap["from_lsn"] in suite.status("brokerd")["text"]
