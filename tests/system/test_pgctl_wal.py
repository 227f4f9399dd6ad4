# SPDX-License-Identifier: PostgreSQL
"""pgctl wal: the changes as they commit (tail), the replication slots, the ladder of positions (lag)."""
import json
import os
import select
import signal
import subprocess
import time

import pytest

from suite import external, is_sanitized, wait_until

OK, FAILED, USAGE = 0, 1, 2
TAIL_SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE %s"


class Tail:
    """A pgctl wal tail in the background; lines() is what it has printed so far."""

    def __init__(self, suite, *args, json_lines=True, wait=True, stdout=None):
        self.suite = suite
        self.text = b""
        command = [f"{os.environ['HOWDAH_BIN']}/pgctl", *(["-j"] if json_lines else []),
                   "-s", f"{suite.run_dir}/control.sock", "wal", "tail", *args]
        self.process = subprocess.Popen(command, stdout=stdout or subprocess.PIPE, stderr=subprocess.PIPE)
        if wait:
            wait_until("tail streams", self.streams, 30)

    def streams(self):
        assert self.process.poll() is None, self.process.stderr.read()
        return self.suite.sql("SELECT count(*) FROM pg_stat_replication r JOIN pg_replication_slots s"
                              " ON s.active_pid = r.pid WHERE s.slot_name LIKE %s AND r.state IN"
                              " ('streaming', 'catchup')", f"pgctl_tail_{self.process.pid}_%")[0][0] == 1

    def read(self):
        while select.select([self.process.stdout], [], [], 0)[0]:
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                break
            self.text += piece
        return self.text.decode()

    def rows(self):
        return [json.loads(line) for line in self.read().splitlines(keepends=True) if line.endswith("\n")]

    def wait_rows(self, n, timeout=30):
        wait_until(f"{n} changes (have {len(self.rows())}: {self.process.poll()})",
                   lambda: len(self.rows()) >= n, timeout)
        return self.rows()

    def end(self, how=signal.SIGINT):
        """Ends it, and waits until the server has let go of its slot. Its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        out, self.errors = self.process.communicate(timeout=30)
        self.text += out or b""
        self.errors = self.errors.decode()
        wait_until("the temporary slot is gone", lambda: self.suite.sql(
            TAIL_SLOTS, f"pgctl_tail_{self.process.pid}_%")[0][0] == 0)
        return self.process.returncode


@pytest.fixture
def tail(suite):
    made = []

    def make(*args, **kw):
        made.append(Tail(suite, *args, **kw))
        return made[-1]
    yield make
    for t in made:
        if t.process.poll() is None:
            t.process.kill()
        t.process.communicate()


def publish(suite, name, columns, identity=None):
    suite.sql(f"CREATE TABLE {name} ({columns})")
    if identity:
        suite.sql(f"ALTER TABLE {name} REPLICA IDENTITY {identity}")
    suite.pgctl("mqtt", "map", "add", name, f"{name.replace('.', '/')}/x")


def transaction(suite, *statements):
    conn = suite.connect()
    conn.autocommit = False
    with conn.cursor() as cur:
        for s in statements:
            cur.execute(s)
        cur.execute("SELECT txid_current()")
        xid = cur.fetchone()[0] & 0xffffffff
    conn.commit()
    conn.close()
    return xid


def test_json_lines(suite, tail):
    publish(suite, "tj", "id int PRIMARY KEY, t text, n numeric, b bool, j jsonb, a int[], d timestamptz")
    t = tail("--table", "public.tj")
    xid = transaction(suite,
                      "INSERT INTO tj VALUES (1, E'two\\nlines \"q\"', 1.50, true, '{\"k\": [1]}', '{1,NULL}',"
                      " '2026-02-03 04:05:06.7+00')",
                      "UPDATE tj SET id = 2 WHERE id = 1", "UPDATE tj SET n = 'NaN' WHERE id = 2",
                      "DELETE FROM tj", "TRUNCATE tj")
    rows = t.wait_rows(5)
    assert [r["op"] for r in rows] == ["insert", "update", "update", "delete", "truncate"]
    assert {r["xid"] for r in rows} == {xid} and [r["ordinal"] for r in rows] == [1, 2, 3, 4, 5]
    assert {(r["schema"], r["table"]) for r in rows} == {("public", "tj")}
    first = rows[0]["new"]
    assert first == {"id": 1, "t": 'two\nlines "q"', "n": 1.5, "b": True, "j": {"k": [1]}, "a": [1, None],
                     "d": "2026-02-03T04:05:06.7+00:00"}
    assert rows[1]["key"] == {"id": 1} and rows[1]["new"]["id"] == 2 and "old" not in rows[1]
    assert "key" not in rows[2] and rows[2]["new"]["n"] == "NaN"
    assert rows[3]["key"] == {"id": 2} and "new" not in rows[3]
    assert rows[4]["cascade"] is False and rows[4]["restart_identity"] is False
    lsn, commit = suite.sql("SELECT %s::pg_lsn < %s::pg_lsn, now() - %s::timestamptz < '1 h'",
                            rows[0]["lsn"], rows[0]["commit_lsn"], rows[0]["commit_time"])[0]
    assert lsn and commit
    assert t.end() == OK and t.errors == ""


def test_unchanged_and_old_rows(suite, tail):
    big = "repeat(md5(random()::text), 4000)"
    for name, identity in (("tu", None), ("tf", "FULL")):
        publish(suite, name, "id int PRIMARY KEY, n int, big text", identity)
        suite.sql(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL")
        suite.sql(f"INSERT INTO {name} VALUES (1, 0, {big})")
    t = tail("--table", "tu", "--table", "tf")
    suite.sql("UPDATE tu SET n = 1")
    suite.sql("UPDATE tf SET n = 1")
    suite.sql("UPDATE tf SET big = NULL")
    row, full, last = t.wait_rows(3)
    assert row["new"] == {"id": 1, "n": 1} and row["unchanged"] == ["big"]
    value = suite.sql("SELECT big FROM tu")[0][0]
    assert len(value) == 128000
    assert full["unchanged"] == ["big"] and full["new"]["big"] == full["old"]["big"] and full["old"]["n"] == 0
    assert len(full["old"]["big"]) == 128000
    assert last["new"] == {"id": 1, "n": 1, "big": None} and "unchanged" not in last
    assert t.end() == OK


def test_for_people(suite, tail):
    publish(suite, '"T x"', '"Id" int PRIMARY KEY, t text')
    t = tail("--table", "T x", json_lines=False)
    xid = transaction(suite, "INSERT INTO \"T x\" VALUES (1, E'it''s \\x1b[31m\\n\\\\ \u009b \u202e ü'), (2, NULL)",
                      "UPDATE \"T x\" SET \"Id\" = 3 WHERE \"Id\" = 2")
    wait_until("COMMIT", lambda: "COMMIT" in t.read())
    begin, one, two, three, commit = t.read().splitlines()
    assert begin.startswith(f"BEGIN xid {xid} at ") and begin.endswith("+00:00")
    assert one == "  INSERT public.\"T x\" \"Id\"=1 t='it''s \\x1b[31m\\n\\\\ \\xc2\\x9b \\xe2\\x80\\xae ü'"
    assert two == "  INSERT public.\"T x\" \"Id\"=2 t=null"
    assert three == "  UPDATE public.\"T x\" key(\"Id\"=2) \"Id\"=3 t=null"
    assert commit.startswith(f"COMMIT xid {xid} end ") and commit.endswith(" 3 changes")
    assert t.end() == OK


def test_filters_and_limit(suite, tail):
    publish(suite, "fa", "id int PRIMARY KEY")
    suite.sql("CREATE SCHEMA s2")
    publish(suite, "s2.fa", "id int PRIMARY KEY")
    publish(suite, "fb", "id int PRIMARY KEY")
    one, both, deletes, limited, hidden = (
        tail("--table", "s2.fa"), tail("--table", "fa", "--op", "insert"), tail("--op", "delete,truncate", "--table=fb"),
        tail("--table", "fb", "--limit", "3"), tail("--table", "fb", "--op", "delete", json_lines=False))
    transaction(suite, "INSERT INTO fa VALUES (1)", "INSERT INTO s2.fa VALUES (2)", "INSERT INTO fb VALUES (3), (4)",
                "DELETE FROM fa", "DELETE FROM fb WHERE id = 3", "INSERT INTO fb VALUES (5)", "TRUNCATE fb, fa")
    suite.sql("INSERT INTO fa VALUES (9)")
    assert [r["new"]["id"] for r in both.wait_rows(3)] == [1, 2, 9]
    assert [r["op"] for r in deletes.wait_rows(2)] == ["delete", "truncate"]
    assert [r["new"]["id"] for r in one.wait_rows(1)] == [2]
    assert limited.process.wait(30) == OK and len(limited.rows()) == 3
    wait_until("COMMIT", lambda: "COMMIT" in hidden.read())
    assert hidden.read().splitlines()[2].endswith(" 1 of 9 changes") and len(hidden.read().splitlines()) == 3
    for t in (one, both, deletes, limited, hidden):
        assert t.end() == OK


def test_messages_and_other_publications(suite, tail):
    suite.sql("CREATE TABLE elsewhere (id int PRIMARY KEY)")
    suite.sql("CREATE PUBLICATION others FOR TABLE elsewhere")
    t = tail("--publication", "others", "--op", "message,insert")
    suite.sql("SELECT pg_logical_emit_message(false, 'loose', 'now')")
    suite.sql("INSERT INTO elsewhere VALUES (1)")
    suite.sql("SELECT pg_logical_emit_message(true, 'in', '\\x00ff'::bytea)")
    rows = [r for r in t.wait_rows(3) if r.get("prefix") in (None, "loose", "in")]
    by_op = {(r["op"], r.get("prefix")): r for r in rows}
    loose, inside = by_op[("message", "loose")], by_op[("message", "in")]
    assert loose["content"] == "now" and loose["xid"] is None and loose["transactional"] is False
    assert inside["content_hex"] == "00ff" and inside["xid"] > 0
    assert by_op[("insert", None)]["table"] == "elsewhere"
    assert t.end() == OK
    done = suite.pgctl_raw("wal", "tail", "--publication", "nosuch")
    assert done.returncode == FAILED and "nosuch" in done.stderr


def test_types_of_the_database(suite, tail):
    suite.sql("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    suite.sql("CREATE TYPE pair AS (a int, b mood)")
    suite.sql("CREATE DOMAIN pos AS int CHECK (VALUE > 0)")
    publish(suite, "ty", "id pos PRIMARY KEY, m mood, p pair, ps pair[]")
    t = tail("--table", "ty")
    suite.sql("INSERT INTO ty VALUES (1, 'ok', '(1,sad)', ARRAY['(2,ok)'::pair])")
    assert t.wait_rows(1)[0]["new"] == {"id": 1, "m": "ok", "p": {"a": 1, "b": "sad"}, "ps": [{"a": 2, "b": "ok"}]}
    assert t.end() == OK


# -- the daemon's slot, from beside ------------------------------------------------------------

def slot_row(suite):
    return suite.sql("SELECT active_pid, confirmed_flush_lsn, restart_lsn FROM pg_replication_slots"
                     " WHERE slot_name = 'howdah_test'")[0]


def test_from_slot_leaves_the_daemon_alone(make_suite):
    suite = make_suite()
    publish(suite, "fs", "id int PRIMARY KEY, t text")
    suite.sql("INSERT INTO fs VALUES (0, 'handled')")
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    wait_until("slot is past row 0", lambda: suite.sql(
        "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'howdah_test'", lsn)[0][0])
    # brokerd stands still: what commits now stays in the slot.
    broker, walstreamd = suite.pid("brokerd"), suite.pid("walstreamd")
    os.kill(walstreamd, signal.SIGSTOP)
    try:
        before = slot_row(suite)
        transaction(suite, "INSERT INTO fs SELECT i, 'x' FROM generate_series(1, 3) i")
        suite.sql("INSERT INTO fs VALUES (4, 'y')")
        for _ in range(2):  # it takes nothing away: the second time shows the same
            done = suite.pgctl_raw("-j", "wal", "tail", "--from-slot")
            assert (done.returncode, done.stderr) == (OK, "")
            assert [json.loads(line)["new"]["id"] for line in done.stdout.splitlines()] == [1, 2, 3, 4]
        follows = Tail(suite, "--from-slot", "--follow")
        follows.wait_rows(4)
        suite.sql("INSERT INTO fs VALUES (5, 'z')")
        assert [r["new"]["id"] for r in follows.wait_rows(5)] == [1, 2, 3, 4, 5]
        assert follows.end() == OK
        assert slot_row(suite) == before
    finally:
        os.kill(walstreamd, signal.SIGCONT)
    assert broker == suite.pid("brokerd")


def test_from_slot_when_nothing_is_left(suite):
    wait_until("it ends", lambda: suite.pgctl_raw("wal", "tail", "--from-slot").returncode == OK)


# -- ends and slow outputs ---------------------------------------------------------------------

@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ends(suite, tail, how):
    t = tail()
    assert t.end(how) == (-signal.SIGKILL if how == signal.SIGKILL else OK)
    assert t.errors == ""


def test_a_reader_that_leaves(suite, tail):
    read, write = os.pipe()
    t = tail(stdout=write)
    os.close(write)
    os.close(read)
    t.process.wait(30)  # without a change: it watches its output
    assert t.end() == FAILED and t.errors == ""


def test_ctrl_c_while_waiting_for_the_slot(suite, tail):
    conn = suite.connect()
    conn.autocommit = False
    conn.cursor().execute("CREATE TEMP TABLE holds_up AS SELECT 1")
    t = tail(wait=False)
    wait_until("it waits", lambda: suite.sql(TAIL_SLOTS, f"pgctl_tail_{t.process.pid}_%")[0][0] == 1)
    t.process.send_signal(signal.SIGINT)
    assert t.process.wait(30) == OK
    conn.rollback()
    assert t.end() == OK


def test_slow_reader_keeps_its_connection(make_suite, make_postgres):
    """Nobody reads the output for several wal_sender_timeout: the server must not lose patience, the
    slot must not run ahead of what was printed, and then everything comes."""
    pg, suite = external(make_suite, make_postgres, server={
        "settings": "wal_sender_timeout = 2s\nlogical_decoding_work_mem = 64kB"})
    suite.sql = lambda text, *args: sql(pg, text, *args)
    publish(suite, "slow", "id int PRIMARY KEY, t text")
    t = Tail(suite, "--table", "slow")
    suite.sql("INSERT INTO slow SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i")
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    pid = suite.sql("SELECT active_pid FROM pg_replication_slots WHERE slot_name LIKE 'pgctl\\_tail%%'")[0][0]
    time.sleep(7)  # what must not happen cannot be waited for
    active, behind = suite.sql("SELECT active_pid, confirmed_flush_lsn < %s FROM pg_replication_slots"
                               " WHERE slot_name LIKE 'pgctl\\_tail%%'", lsn)[0]
    assert (active, behind) == (pid, True)
    rows = t.wait_rows(20000, 60)
    assert [r["new"]["id"] for r in rows] == list(range(1, 20001))
    wait_until("acknowledged as printed", lambda: suite.sql(
        "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name LIKE 'pgctl\\_tail%%'", lsn)[0][0])
    assert t.end() == OK and t.errors == ""
    # Nor does one that nobody reads hold up the server's shutdown.
    t = Tail(suite, "--table", "slow")
    suite.sql("UPDATE slow SET t = 'new'")
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    wait_until("the daemon is done", lambda: suite.sql(
        "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'howdah_test'", lsn)[0][0], 60)
    began = time.monotonic()
    pg.stop(signal.SIGINT)
    assert time.monotonic() - began < 8
    assert t.process.wait(30) == FAILED
    out, errors = t.process.communicate()
    assert "the server ended our session" in errors.decode()
    pg.start()


def sql(pg, text, *args):
    conn = pg.connect()
    try:
        with conn.cursor() as cur:
            cur.execute(text, args or None)
            return cur.fetchall() if cur.description else None
    finally:
        conn.close()


def peak_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def test_streamed_transactions(suite, tail):
    """Savepoints, rollbacks and interleaved large transactions come out exactly; memory stays bounded."""
    publish(suite, "st", "id int PRIMARY KEY, t text")
    suite.sql("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
    suite.sql("SELECT pg_reload_conf()")
    try:
        t = tail("--table", "st")
        other = suite.connect()
        other.autocommit = False
        cur = other.cursor()
        cur.execute("INSERT INTO st SELECT i, 'aborts' FROM generate_series(100001, 105000) i")
        xid = transaction(suite, "INSERT INTO st SELECT i, 'a' FROM generate_series(1, 4000) i", "SAVEPOINT a",
                          "INSERT INTO st SELECT i, 'b' FROM generate_series(4001, 9000) i", "SAVEPOINT b",
                          "INSERT INTO st SELECT i, 'c' FROM generate_series(9001, 14000) i", "ROLLBACK TO a",
                          "INSERT INTO st SELECT i, 'd' FROM generate_series(20001, 20102) i")
        other.rollback()
        suite.sql("INSERT INTO st VALUES (0, 'end')")
        rows = t.wait_rows(4103, 60)
        assert [r["new"]["id"] for r in rows] == [*range(1, 4001), *range(20001, 20103), 0]
        assert {r["xid"] for r in rows[:-1]} == {xid} and [r["ordinal"] for r in rows[:-1]] == list(range(1, 4103))
        assert len({r["subxid"] for r in rows[4000:4102]}) == 1 and rows[4000]["subxid"] != xid
        assert t.end() == OK
        # 80 MB in one transaction: 16 MB in memory, the rest in files without a name.
        t = tail("--table", "st", "--op", "delete")
        suite.sql("INSERT INTO st SELECT i, repeat(i::text, 200) FROM generate_series(200000, 280000) i")
        suite.sql("DELETE FROM st WHERE id = 0")
        t.wait_rows(1, 120)
        assert is_sanitized(f"/proc/{t.process.pid}/exe") or peak_kb(t.process.pid) < 60000, peak_kb(t.process.pid)
        assert t.end() == OK
    finally:
        suite.sql("ALTER SYSTEM RESET logical_decoding_work_mem")
        suite.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize("from_slot", [False, True])
def test_server_cannot_stream(suite, tail, from_slot):
    """What the server cannot decode before its end is shown all the same, nothing twice: the stream goes
    on without streaming (PostgreSQL up to 18: a table changed after a rolled-back savepoint that changed it)."""
    name = f"cs{from_slot:d}"
    publish(suite, name, "id int PRIMARY KEY, t text")
    suite.sql("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'")
    suite.sql("SELECT pg_reload_conf()")
    # The daemon's slot may hold an earlier test's message, which the tail would show.
    lsn = suite.sql("SELECT pg_current_wal_insert_lsn()")[0][0]
    wait_until("the slot let go of what was before", lambda: suite.sql(
        "SELECT bool_and(confirmed_flush_lsn >= %s) FROM pg_replication_slots WHERE NOT temporary", lsn)[0][0], 30)
    try:
        t = tail("--table", name, "--op", "insert,message", *(["--from-slot", "--follow"] if from_slot else []))
        suite.sql(f"INSERT INTO {name} VALUES (0, 'before')")
        suite.sql("SELECT pg_logical_emit_message(false, 'm', 'alone')")
        t.wait_rows(2)
        xid = transaction(
            suite, f"INSERT INTO {name} SELECT g, 'a' FROM generate_series(1, 2000) g",
            "SAVEPOINT a", f"ALTER TABLE {name} ADD COLUMN aborted text",
            f"INSERT INTO {name} SELECT g, 'b', repeat('z', 50) FROM generate_series(3000, 5000) g", "ROLLBACK TO a",
            f"INSERT INTO {name} SELECT g, 'c' FROM generate_series(3000, 5000) g",
            f"ALTER TABLE {name} ADD COLUMN kept text",
            f"INSERT INTO {name} SELECT g, 'd', repeat('k', 50) FROM generate_series(6000, 8000) g")
        suite.sql(f"INSERT INTO {name} VALUES (9000, 'after')")
        rows = t.wait_rows(6005, 60)
        inserts = [r for r in rows if r["op"] == "insert"]
        assert len(rows) == 6005 and len(inserts) == 6004
        assert [r["new"]["id"] for r in inserts] == [
            0, *range(1, 2001), *range(3000, 5001), *range(6000, 8001), 9000]
        assert {r["xid"] for r in inserts[1:-1]} == {xid}
        assert t.end() == OK
        broke = "large transactions are left to it" in t.errors
        assert broke == (t.errors != ""), t.errors
    finally:
        suite.sql("ALTER SYSTEM RESET logical_decoding_work_mem")
        suite.sql("SELECT pg_reload_conf()")


def test_tail_usage(suite):
    for args in (["--op", "nonsense"], ["--limit", "0"], ["--follow"], ["--publication", "a,b"], ["--table"]):
        assert suite.pgctl_raw("wal", "tail", *args).returncode == USAGE, args
    t = Tail(suite, "--table", "not_there")
    assert t.end() == OK and "not_there" in t.errors


# -- slots -------------------------------------------------------------------------------------

def version(suite):
    return suite.sql("SHOW server_version_num")[0][0][:2]


def test_slots(suite):
    row = {r["name"]: r for r in suite.rows("wal", "slots")}["howdah_test"]
    assert (row["type"], row["plugin"], row["database"], row["active"]) == ("logical", "pgoutput", "howdah", True)
    assert row["retained_bytes"] >= row["lag_bytes"] >= 0 and row["wal_status"] == "reserved"
    assert row["temporary"] is False and row["two_phase"] is False and row["invalidation"] is None
    assert (row["failover"] is None) == (int(version(suite)) < 17)
    assert "howdah_test" in suite.pgctl("wal", "slots") and "safe_wal_size" in suite.pgctl("wal", "slots")
    assert row["safe_wal_size"] is None
    suite.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
    suite.sql("SELECT pg_reload_conf()")
    try:
        wait_until("a limit", lambda: {r["name"]: r for r in suite.rows("wal", "slots")}[
            "howdah_test"]["safe_wal_size"])
    finally:
        suite.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        suite.sql("SELECT pg_reload_conf()")


def test_slots_create_drop(suite):
    made = suite.rows("wal", "slots", "create", "plain")[0]
    assert made["created"] == "plain" and "/" in made["consistent_point"]
    suite.pgctl("wal", "slots", "create", "phys", "--physical", "--reserve-wal")
    rows = {r["name"]: r for r in suite.rows("wal", "slots")}
    assert rows["plain"]["plugin"] == "pgoutput" and rows["plain"]["type"] == "logical"
    assert rows["phys"]["type"] == "physical" and rows["phys"]["restart_lsn"]
    again = suite.pgctl_raw("wal", "slots", "create", "plain")
    assert again.returncode == FAILED and "already exists" in again.stderr
    asked = suite.pgctl_raw("wal", "slots", "drop", "plain")
    assert asked.returncode == FAILED and "--yes" in asked.stderr and "has not confirmed" in asked.stderr
    assert {r["name"] for r in suite.rows("wal", "slots")} >= {"plain", "phys"}
    suite.pgctl("wal", "slots", "drop", "plain", "--yes")
    suite.pgctl("wal", "slots", "drop", "phys", "--yes")
    assert not {r["name"] for r in suite.rows("wal", "slots")} & {"plain", "phys"}
    gone = suite.pgctl_raw("wal", "slots", "drop", "plain", "--yes")
    assert gone.returncode == FAILED and "no slot plain" in gone.stderr


def test_the_nodes_own_slot_stays(suite):
    for flags in ([], ["-j"]):
        done = suite.pgctl_raw(*flags, "wal", "slots", "drop", "howdah_test", "--yes")
        assert done.returncode == FAILED and "pgctl node remove test" in done.stderr
    assert {r["name"]: r for r in suite.rows("wal", "slots")}["howdah_test"]["active"]


def test_slots_by_version(suite):
    v = int(version(suite))
    cases = (("two-phase", 15, "two_phase"), ("failover", 17, "failover"))
    for option, since, column in cases:
        done = suite.pgctl_raw("wal", "slots", "create", "opt", f"--{option}")
        if v < since:
            assert done.returncode == FAILED and str(since) in done.stderr, done.stderr
            continue
        assert done.returncode == OK, done.stderr
        assert {r["name"]: r for r in suite.rows("wal", "slots")}["opt"][column] is True
        suite.pgctl("wal", "slots", "drop", "opt", "--yes")
    suite.pgctl("wal", "slots", "create", "opt")
    for option, since, column in (("two-phase", 18, "two_phase"), ("failover", 17, "failover")):
        done = suite.pgctl_raw("wal", "slots", "alter", "opt", f"--{option}", "on")
        if v < since:
            assert done.returncode == FAILED and str(since) in done.stderr, done.stderr
            continue
        assert done.returncode == OK, done.stderr
        assert {r["name"]: r for r in suite.rows("wal", "slots")}["opt"][column] is True
        suite.pgctl("wal", "slots", "alter", "opt", f"--{option}", "off")
        assert {r["name"]: r for r in suite.rows("wal", "slots")}["opt"][column] is False
    suite.pgctl("wal", "slots", "drop", "opt", "--yes")
    for args in (["alter", "opt"], ["alter", "opt", "--failover", "maybe"], ["create", "Bad-Name"],
                 ["create", "x", "--reserve-wal"], ["create", "x", "--physical", "--two-phase"]):
        assert suite.pgctl_raw("wal", "slots", *args).returncode == USAGE, args


# -- lag ---------------------------------------------------------------------------------------

LADDER = ["server", "sent", "received", "published", "brokerd", "acknowledged", "slot", "retained from"]


def lag(suite):
    rows = suite.rows("wal", "lag")
    values = [int(a, 16) << 32 | int(b, 16) for a, b in (r["lsn"].split("/") for r in rows)]
    assert values == sorted(values, reverse=True), rows
    assert all(r["behind_bytes"] == values[0] - v and r["behind_s"] >= 0 for r, v in zip(rows, values)), rows
    assert [r["point"] for r in rows] == LADDER
    return {r["point"]: r for r in rows}


def test_lag_is_a_ladder(make_suite):
    suite = make_suite()
    publish(suite, "lg", "id int PRIMARY KEY, t text")
    sub = suite.subscribe("lg/#")
    # Nothing to do: nothing is behind, though other changes than published ones go by.
    suite.sql("CREATE TABLE unpublished AS SELECT * FROM generate_series(1, 10000)")
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    wait_until("idle position is acknowledged", lambda: suite.sql(
        "SELECT %s::pg_lsn <= %s::pg_lsn", lsn, lag(suite)["slot"]["lsn"])[0][0])
    conn = suite.connect()
    for i in range(40):
        conn.cursor().execute("INSERT INTO lg SELECT g, 'x' FROM generate_series(%s, %s) g", (i * 100, i * 100 + 99))
        rows = lag(suite)
        assert rows["brokerd"]["attached"] is True
    sub.wait_count(4000)
    text = suite.pgctl("wal", "lag")
    assert "behind_s" in text and "attached" in text
    # A reader that stands still: everything from it on downwards waits, and that takes time.
    pid = suite.pid("brokerd")
    os.kill(pid, signal.SIGSTOP)
    try:
        suite.sql("INSERT INTO lg SELECT g, 'y' FROM generate_series(10001, 10100) g")
        lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
        wait_until("published", lambda: suite.sql("SELECT %s::pg_lsn <= %s::pg_lsn", lsn,
                                                  lag(suite)["published"]["lsn"])[0][0])
        wait_until("seconds behind", lambda: lag(suite)["acknowledged"]["behind_s"] >= 2)
        assert lag(suite)["brokerd"]["behind_bytes"] > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until("caught up", lambda: lag(suite)["brokerd"]["behind_s"] == 0)


def test_lag_of_one_that_is_not_there(make_suite):
    suite = make_suite()
    publish(suite, "lg", "id int PRIMARY KEY")
    suite.kill("brokerd")
    seen = []

    def not_attached():
        rows = {r["point"]: r for r in suite.rows("wal", "lag")}
        seen.append(rows.get("brokerd"))
        return rows["brokerd"]["attached"] is False
    for _ in range(20):  # it is back within a moment: look quickly, kill again
        if not_attached():
            break
        if suite.status("brokerd").get("state") == "UP":
            suite.kill("brokerd")
    assert seen[-1]["attached"] is False, seen
    suite.wait_up()
