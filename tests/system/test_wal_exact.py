# SPDX-License-Identifier: PostgreSQL
"""
What the ring holds is what the server committed, byte for byte: everything that walstreamd publishes,
in every mode of streaming, is compared with pg_logical_slot_peek_binary_changes, whose protocol 1
puts transactions together on the server. The edge cases of the protocol are the traffic.
"""
import threading

import psycopg2
import pytest

from pgoutput import Tap, Tables, compare, decode, lsn_int, rows_of, transactions
from suite import wait_until

MODES = ["off", "on", "parallel"]
SETTINGS = "logical_decoding_work_mem = 64kB\nwal_sender_timeout = 20s\n"
PEEK = """SELECT lsn::text, data FROM pg_logical_slot_peek_binary_changes('compare', NULL, NULL,
          'proto_version', '1', 'publication_names', 'howdah,howdah_test')"""


class Source:
    """A server with a suite on it, whose ring is tapped, and a second slot to compare with."""

    def __init__(self, make_suite, make_postgres, mode, settings="", database=""):
        self.pg = make_postgres(settings=SETTINGS + settings)
        admin = self.pg.connect("postgres")
        admin.cursor().execute(f"CREATE DATABASE howdah {database}")
        admin.close()
        self.tap = Tap(make_suite, self.pg, walstreamd=f'streaming = "{mode}";')
        self.suite = self.tap.suite
        self.cur = self.connect().cursor()
        self.version = self.cur.connection.server_version
        self.cur.execute("SELECT pg_create_logical_replication_slot('compare', 'pgoutput')")

    def connect(self):
        conn = self.pg.connect()
        conn.set_client_encoding("UTF8")
        conn.cursor().execute("SET timezone = UTC; SET client_min_messages = error")
        return conn

    def publish(self, *tables):
        for table in tables:
            self.cur.execute(f"ALTER PUBLICATION howdah ADD TABLE {table}")

    def settle(self):
        """Until the ring's reader has everything; returns the transactions of both sides."""
        self.cur.execute("CREATE TABLE IF NOT EXISTS marker (id serial)")
        self.cur.execute("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'marker'")
        if self.cur.fetchone()[0] == 0:
            self.publish("marker")
        self.cur.execute("SELECT pg_current_wal_insert_lsn()")
        lsn = lsn_int(self.cur.fetchone()[0])
        self.cur.execute("INSERT INTO marker DEFAULT VALUES")
        self.tap.wait_lsn(lsn)
        self.cur.execute(PEEK)
        peeked, now = [], None
        for _, data in self.cur.fetchall():
            data = bytes(data)
            m = decode(data) if data[:1] != b"A" else {"type": "A"}
            if m["type"] == "A":
                continue
            if m["type"] == "B":
                now = []
            now.append((data, m))
            if m["type"] == "C":
                peeked.append(now)
        return transactions(self.tap.records()), peeked

    def close(self):
        self.cur.connection.close()


@pytest.fixture
def make_source(make_suite, make_postgres):
    made = []

    def make(mode, **options):
        source = Source(make_suite, make_postgres, mode, **options)
        made.append(source)
        return source
    yield make
    for source in made:
        source.close()
        source.suite.close()
        source.tap.close()


def without_empty(txns):
    """Transactions that hold something: up to 14 the server sends empty ones in protocol 1 only."""
    return [t for t in txns if any(m["type"] in "IUDTM" for _, m in t)]


def assert_same(tapped, peeked):
    """The same transactions, the same messages, the same bytes. When a relation is told again depends
    on what else the server does (its caches); what was told last before a change does not."""
    first = min((m["final_lsn"] for t in peeked for _, m in t if m["type"] == "B"), default=0)
    mine = without_empty([[(r.data, m) for r, m in t] for t in tapped if t[0][0].commit_lsn >= first])
    theirs = without_empty(peeked)
    assert [t[0][1]["final_lsn"] for t in mine] == [t[0][1]["final_lsn"] for t in theirs]
    known_mine, known_theirs = {}, {}
    for a, b in zip(mine, theirs):
        a, b = with_relations(a, known_mine), with_relations(b, known_theirs)
        assert a == b, f"transaction {a[0]}"


def with_relations(txn, known):
    """Its messages without Relation and Type, each change with the Relation message that binds it.
    (Where a transaction's origin stands is known at its commit only: the server streams 0.)"""
    out = []
    for data, m in txn:
        if m["type"] == "O":
            out.append((m["name"], None))
        elif m["type"] == "R":
            known[m["relid"]] = data
        elif m["type"] != "Y":
            out.append((data, known[m["relid"]] if m["type"] in "IUD" else None))
    return out


@pytest.mark.parametrize("mode", MODES)
def test_vector(make_source, mode):
    """A transaction with savepoints rolled back, larger than the server's memory, beside one that
    aborts: exactly its 4,102 rows."""
    s = make_source(mode)
    s.cur.execute("CREATE TABLE v (id int PRIMARY KEY, t text)")
    s.publish("v")
    a, b = s.connect(), s.connect()
    a.autocommit = b.autocommit = False
    rows = "INSERT INTO v SELECT g, repeat('x', 60) FROM generate_series(%s, %s) g"
    with a.cursor() as ca, b.cursor() as cb:
        ca.execute(rows, (1, 4000))
        cb.execute(rows, (100_001, 102_500))
        ca.execute("SAVEPOINT a")
        ca.execute(rows, (4001, 9000))
        cb.execute(rows, (102_501, 105_000))
        ca.execute("SAVEPOINT b")
        ca.execute(rows, (9001, 14_000))
        ca.execute("ROLLBACK TO a")
        ca.execute(rows, (4001, 4102))
        b.rollback()
        a.commit()
    a.close()
    b.close()
    tapped, peeked = s.settle()
    rows = [m for t in tapped for r, m in t if m["type"] == "I" and len(m["new"]) == 2]
    assert len(rows) == 4102
    assert [int(m["new"][0]) for m in rows] == list(range(1, 4103))
    assert_same(tapped, peeked)
    if mode == "off":
        assert s.suite.stat("walstreamd", "wal_transactions_streamed") == 0
    else:
        wait_until("it was streamed",
                   lambda: s.suite.stat("walstreamd", "wal_transactions_streamed") > 0)


def traffic(s):
    """Every edge case of the protocol that the server can be made to produce."""
    cur, version = s.cur, s.version
    cur.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TABLE pk (id int PRIMARY KEY, a text, b text, m mood);
        ALTER TABLE pk ALTER b SET STORAGE EXTERNAL;
        CREATE TABLE ri_full (id int, t text); ALTER TABLE ri_full REPLICA IDENTITY FULL;
        ALTER TABLE ri_full ALTER t SET STORAGE EXTERNAL;
        CREATE TABLE ri_index (id int NOT NULL, u text NOT NULL, v int);
        CREATE UNIQUE INDEX ri_index_u ON ri_index (u); ALTER TABLE ri_index REPLICA IDENTITY USING INDEX ri_index_u;
        CREATE TABLE ri_nothing (id int); ALTER TABLE ri_nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE toast_key (k text PRIMARY KEY, v int); ALTER TABLE toast_key ALTER k SET STORAGE EXTERNAL;
        CREATE TABLE part (id int, r int, t text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
        CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (10);
        CREATE TABLE part2 PARTITION OF part FOR VALUES FROM (10) TO (20);
        ALTER TABLE part2 REPLICA IDENTITY FULL;
        CREATE TABLE ddl (id int PRIMARY KEY, a int, b int);
        CREATE TABLE "Name with ""quotes"" é" ("Spalte ä" int PRIMARY KEY);
        CREATE TABLE none ();
        CREATE TABLE unpublished (id int)""")
    s.publish("pk", "ri_full", "ri_index", "ri_nothing", "toast_key", "part", "ddl",
              '"Name with ""quotes"" é"', "none")
    big = "x" * 9000
    # the key changes or not, TOAST that does not change, also with a full old row
    cur.execute("INSERT INTO pk VALUES (1, 'a', %s, 'sad'), (2, NULL, '', 'happy')", (big,))
    cur.execute("UPDATE pk SET a = 'c' WHERE id = 1")
    cur.execute("UPDATE pk SET id = 11 WHERE id = 1")
    cur.execute("UPDATE pk SET b = 'short' WHERE id = 11")
    cur.execute("DELETE FROM pk WHERE id = 11")
    cur.execute("INSERT INTO ri_full VALUES (1, %s), (NULL, NULL)", (big,))
    cur.execute("UPDATE ri_full SET id = 2 WHERE id = 1")
    cur.execute("DELETE FROM ri_full")
    cur.execute("INSERT INTO ri_index VALUES (1, 'u', 1); UPDATE ri_index SET v = 2;"
                "UPDATE ri_index SET u = 'w'; DELETE FROM ri_index")
    cur.execute("INSERT INTO ri_nothing VALUES (1)")
    with pytest.raises(psycopg2.Error):
        cur.execute("UPDATE ri_nothing SET id = 2")
    key = "".join(chr(97 + i % 26) for i in range(2400))
    cur.execute("INSERT INTO toast_key VALUES (%s, 1); UPDATE toast_key SET v = 2; DELETE FROM toast_key", (key,))
    # a row that moves between partitions; truncates of several, of the root, of a leaf
    cur.execute("INSERT INTO part SELECT g, g % 20, 'p' FROM generate_series(1, 40) g")
    cur.execute("UPDATE part SET t = 'q' WHERE id < 5; UPDATE part SET r = 15 WHERE id = 3; DELETE FROM part WHERE id = 19")
    cur.execute("TRUNCATE part1")
    cur.execute("TRUNCATE pk, ri_full RESTART IDENTITY CASCADE")
    cur.execute("TRUNCATE part")
    cur.execute('INSERT INTO "Name with ""quotes"" é" VALUES (5)')
    cur.execute("INSERT INTO none DEFAULT VALUES")
    # empty: nothing that is published, and nothing at all
    cur.execute("INSERT INTO unpublished VALUES (1)")
    cur.execute("SELECT txid_current()")
    subtransactions(s)
    ddl_inside(s)
    two_phase(s)
    interleaved(s)
    if version >= 150000:
        filters(s)
    cur.execute("SELECT pg_replication_origin_create('elsewhere')")
    cur.execute("SELECT pg_replication_origin_session_setup('elsewhere')")
    cur.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', now());"
                "INSERT INTO pk VALUES (50, 'o', 'o', NULL); COMMIT")
    cur.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/CD', now());"
                "INSERT INTO pk SELECT g, repeat('o', 80), '', NULL FROM generate_series(1000, 4000) g; COMMIT")
    cur.execute("SELECT pg_replication_origin_session_reset()")


def subtransactions(s):
    cur = s.cur
    many = "INSERT INTO pk SELECT g, repeat('s', 80), '', NULL FROM generate_series(%s, %s) g"
    for base, end in ((1_000_000, "COMMIT"), (2_000_000, "ROLLBACK")):
        cur.execute("BEGIN")
        cur.execute(many, (base + 10_000, base + 11_500))
        cur.execute("SAVEPOINT a")
        cur.execute(many, (base + 12_000, base + 13_500))
        cur.execute("SAVEPOINT b")
        cur.execute(many, (base + 14_000, base + 15_500))
        cur.execute("SAVEPOINT c; RELEASE c; SAVEPOINT d")
        cur.execute(many, (base + 16_000, base + 17_500))
        cur.execute("ROLLBACK TO d")
        cur.execute(many, (base + 18_000, base + 19_500))
        cur.execute("RELEASE b; SAVEPOINT e")
        cur.execute(many, (base + 20_000, base + 21_500))
        cur.execute("ROLLBACK TO a")
        cur.execute(many, (base + 22_000, base + 23_500))
        cur.execute(f"SAVEPOINT f; {end}")
    # a sub-transaction in every row, one in three taken back
    cur.execute("""DO $$ BEGIN FOR i IN 30000 .. 32000 LOOP
        BEGIN
            INSERT INTO pk VALUES (i, repeat('n', 80), '', NULL);
            IF i % 3 = 0 THEN RAISE division_by_zero; END IF;
        EXCEPTION WHEN division_by_zero THEN NULL; END;
        END LOOP; END $$""")


FILL = "INSERT INTO ddl (id, a) SELECT g, 1 FROM generate_series(%s, %s) g"


def ddl_inside(s):
    """Definitions that change within a transaction, and that an aborted part of it had changed."""
    cur = s.cur
    cur.execute("BEGIN")
    cur.execute(FILL, (100_000, 102_000))
    cur.execute("SAVEPOINT a; ALTER TABLE ddl ADD COLUMN aborted text")
    cur.execute("INSERT INTO ddl (id, a, aborted) SELECT g, 2, repeat('z', 50) FROM generate_series(103000, 105000) g")
    cur.execute("ROLLBACK TO a")
    cur.execute(FILL, (103_000, 105_000))
    cur.execute("COMMIT")
    cur.execute("BEGIN")
    cur.execute(FILL, (1, 2000))
    cur.execute("ALTER TABLE ddl ADD COLUMN kept text")
    cur.execute("INSERT INTO ddl (id, a, kept) SELECT g, 3, repeat('k', 50) FROM generate_series(6000, 8000) g")
    cur.execute("SAVEPOINT a; ALTER TABLE ddl DROP COLUMN b; ALTER TABLE ddl RENAME a TO alpha")
    cur.execute("INSERT INTO ddl (id, alpha, kept) SELECT g, 4, repeat('l', 50) FROM generate_series(9000, 11000) g")
    cur.execute("COMMIT")
    # what only an aborted transaction said is not believed afterwards
    cur.execute("BEGIN; ALTER TABLE ddl ADD COLUMN never int")
    cur.execute("INSERT INTO ddl (id, alpha, never) SELECT g, 5, 5 FROM generate_series(20000, 24000) g")
    cur.execute("ROLLBACK")
    cur.execute("INSERT INTO ddl (id, alpha) VALUES (50000, 1)")
    cur.execute("BEGIN; CREATE TABLE fresh (id int PRIMARY KEY, t text); ALTER PUBLICATION howdah ADD TABLE fresh")
    cur.execute("INSERT INTO fresh SELECT g, repeat('f', 80) FROM generate_series(1, 3000) g; COMMIT")
    cur.execute("INSERT INTO fresh VALUES (5000, 'f')")


def two_phase(s):
    """Our slot is without two_phase: a prepared transaction comes when it is committed."""
    cur = s.cur
    many = "INSERT INTO pk SELECT g, repeat('2', 80), '', NULL FROM generate_series(%s, %s) g"
    cur.execute("BEGIN")
    cur.execute(many, (40_000, 42_000))
    cur.execute("PREPARE TRANSACTION 'one'")
    cur.execute("INSERT INTO pk VALUES (42500, 'between', '', NULL)")
    cur.execute("COMMIT PREPARED 'one'")
    cur.execute("BEGIN")
    cur.execute(many, (43_000, 45_000))
    cur.execute("PREPARE TRANSACTION 'two'")
    cur.execute("ROLLBACK PREPARED 'two'")
    cur.execute("BEGIN; INSERT INTO pk VALUES (45500, 'again', '', NULL); PREPARE TRANSACTION 'one'")
    cur.execute("COMMIT PREPARED 'one'")


def interleaved(s):
    """Several large transactions at once, small ones between their blocks."""
    conns = [s.connect() for _ in range(3)]
    for c in conns:
        c.autocommit = False
    for step in range(6):
        for i, c in enumerate(conns):
            at = 100_000 * (i + 1) + step * 1000
            c.cursor().execute("INSERT INTO pk SELECT g, repeat('i', 80), '', NULL"
                               " FROM generate_series(%s, %s) g", (at, at + 900))
            s.cur.execute("INSERT INTO ri_full VALUES (%s, 'small')", (at,))
    conns[1].commit()
    conns[0].rollback()
    conns[2].commit()
    for c in conns:
        c.close()


def filters(s):
    """A row filter turns an update into an insert or a delete; a column list leaves columns out."""
    s.cur.execute("CREATE TABLE filtered (id int PRIMARY KEY, v int, secret text)")
    s.cur.execute("ALTER PUBLICATION howdah ADD TABLE filtered (id, v) WHERE (id > 10)")
    s.cur.execute("INSERT INTO filtered VALUES (1, 1, 's'), (11, 1, 's')")
    s.cur.execute("UPDATE filtered SET id = 12 WHERE id = 1")
    s.cur.execute("UPDATE filtered SET v = 2 WHERE id = 11")
    s.cur.execute("UPDATE filtered SET id = 2 WHERE id = 11")


@pytest.mark.parametrize("mode", MODES)
def test_every_edge_case(make_source, mode):
    s = make_source(mode)
    traffic(s)
    tapped, peeked = s.settle()
    assert_same(tapped, peeked)
    assert s.suite.stat("walstreamd", "wal_streaming_given_up") == 0
    tables = Tables({"pk": ["id"], "ddl": ["id"], "fresh": ["id"], "toast_key": ["k"]})
    for t in tapped:
        for _, m in t:
            name = tables.relations.get(m.get("relid"), {}).get("name")
            if m["type"] == "R" or name in tables.keys:
                tables.apply(m)
            elif m["type"] == "T" and any(tables.relations[r]["name"] == "pk" for r in m["relids"]):
                tables.rows["pk"].clear()
    for row in tables.rows["ddl"].values():
        row.setdefault("alpha", row.get("a"))  # renamed on the way
    for name, key in tables.keys.items():
        assert not compare(tables.rows[name], rows_of(s.cur, name, key))[:5], name


@pytest.mark.parametrize("mode", MODES)
def test_database_in_latin1(make_source, mode):
    """Names and values of a database that is not in UTF-8 arrive in UTF-8."""
    s = make_source(mode, database="ENCODING 'LATIN1' TEMPLATE template0")
    s.cur.execute('CREATE SCHEMA "Größen"')
    s.cur.execute("""CREATE TYPE "Größen"."Farbe" AS ENUM ('grün', 'weiß')""")
    s.cur.execute("""CREATE TABLE "Größen"."Maße" ("Länge" int PRIMARY KEY, "ÿ" text, f "Größen"."Farbe")""")
    s.publish('"Größen"."Maße"')
    rows = """INSERT INTO "Größen"."Maße" SELECT g, repeat('é', 50), 'weiß' FROM generate_series(%s, %s) g"""
    s.cur.execute(rows, (1, 10))
    s.cur.execute(rows, (11, 5000))
    s.cur.execute("""UPDATE "Größen"."Maße" SET "ÿ" = 'naïf', f = 'grün' WHERE "Länge" = 7""")
    s.cur.execute("""DELETE FROM "Größen"."Maße" WHERE "Länge" = 8""")
    tapped, peeked = s.settle()
    assert_same(tapped, peeked)
    told = [m for t in tapped for _, m in t]
    relation = next(m for m in told if m["type"] == "R" and m["name"] == "Maße")
    assert relation["schema"] == "Größen"
    assert [c[1] for c in relation["columns"]] == ["Länge", "ÿ", "f"]
    assert any(m["type"] == "Y" and (m["schema"], m["name"]) == ("Größen", "Farbe") for m in told)
    assert sum(m["type"] == "I" and m["new"][1:] == ["é" * 50, "weiß"] for m in told) == 5000
    assert [m["new"] for m in told if m["type"] == "U"] == [["7", "naïf", "grün"]]


@pytest.mark.parametrize("mode", ["on", "parallel"])
def test_server_cannot_stream(make_source, mode):
    """PostgreSQL up to 18 fails to decode, before its end, a transaction that changes a table after a
    savepoint that had changed it was rolled back. walstreamd then leaves it to the server to put
    large transactions together, says so, and streams again after a reload."""
    s = make_source(mode)
    s.cur.execute("CREATE TABLE ddl (id int PRIMARY KEY, a int)")
    s.publish("ddl")
    s.cur.execute("BEGIN")
    s.cur.execute(FILL, (1, 2000))
    s.cur.execute("SAVEPOINT a; ALTER TABLE ddl ADD COLUMN aborted text")
    s.cur.execute("INSERT INTO ddl (id, a, aborted) SELECT g, 2, repeat('z', 50) FROM generate_series(3000, 5000) g")
    s.cur.execute("ROLLBACK TO a")
    s.cur.execute(FILL, (3000, 5000))
    s.cur.execute("ALTER TABLE ddl ADD COLUMN kept text")
    s.cur.execute("INSERT INTO ddl (id, a, kept) SELECT g, 3, repeat('k', 50) FROM generate_series(6000, 8000) g")
    s.cur.execute("COMMIT")
    s.cur.execute("SELECT pg_current_wal_lsn()")
    s.tap.wait_lsn(lsn_int(s.cur.fetchone()[0]) - 200)
    wait_until("it was streamed, or not", lambda: any(
        s.suite.stat("walstreamd", name) for name in
        ("wal_streaming_given_up", "wal_transactions_streamed")))
    if s.suite.stat("walstreamd", "wal_streaming_given_up"):  # a server that is mended streams it
        assert "large transactions are left to the server" in s.suite.status("walstreamd")["text"]
        s.suite.pgctl("reload")
        s.suite.wait_up()
    streamed = s.suite.stat("walstreamd", "wal_transactions_streamed")
    s.cur.execute("INSERT INTO ddl SELECT g, 5 FROM generate_series(10000, 15000) g")
    tapped, peeked = s.settle()
    assert_same(tapped, peeked)
    wait_until("it was streamed",
               lambda: s.suite.stat("walstreamd", "wal_transactions_streamed") > streamed)


@pytest.mark.parametrize("mode", ["on", "parallel"])
def test_every_change_streamed(make_source, mode):
    """The server's developer option streams every change, so that small transactions stream too."""
    s = make_source(mode)
    if s.version < 160000:
        pytest.skip("PostgreSQL 16 and later can be told to")
    s.cur.execute("ALTER SYSTEM SET debug_logical_replication_streaming = immediate")
    s.cur.execute("SELECT pg_reload_conf()")
    # the option counts for walsenders that begin after it
    pid = s.suite.kill("walstreamd")
    wait_until("another walstreamd", lambda: s.suite.pid("walstreamd") not in (0, pid))
    s.suite.wait_up()
    traffic(s)
    s.cur.execute("ALTER SYSTEM RESET debug_logical_replication_streaming")
    s.cur.execute("SELECT pg_reload_conf()")
    s.cur.execute("SET debug_logical_replication_streaming = buffered")
    tapped, peeked = s.settle()
    assert_same(tapped, peeked)


@pytest.mark.parametrize("mode", MODES)
def test_restarts_in_large_transactions(make_source, mode):
    """walstreamd and the ring's reader die while large transactions are open: nothing is missing,
    nothing twice."""
    s = make_source(mode)
    s.cur.execute("CREATE TABLE l (id int PRIMARY KEY, t text)")
    s.publish("l")
    stop = threading.Event()

    def kill():
        while not stop.wait(1.0):
            for worker in ("walstreamd", "brokerd"):
                try:
                    s.suite.kill(worker)
                except (AssertionError, ProcessLookupError):
                    pass
                if stop.wait(0.7):
                    return
    killer = threading.Thread(target=kill)
    killer.start()
    conn = s.connect()
    conn.autocommit = False
    for i in range(6):
        with conn.cursor() as cur:
            for j in range(5):
                cur.execute("INSERT INTO l SELECT g, repeat('y', 100) FROM generate_series(%s, %s) g",
                            (i * 100_000 + j * 4000, i * 100_000 + j * 4000 + 3999))
                cur.execute("SAVEPOINT s")
                stop.wait(0.2)
            cur.execute("ROLLBACK TO s")
        conn.commit() if i % 3 != 2 else conn.rollback()
    conn.close()
    stop.set()
    killer.join()
    s.suite.wait_up(120)
    tapped, peeked = s.settle()
    ids = [int(m["new"][0]) for t in tapped for _, m in t if m["type"] == "I" and len(m["new"]) == 2]
    expected = [i * 100_000 + n for i in (0, 1, 3, 4) for n in range(20_000)]
    assert ids == expected
    assert_same(tapped, peeked)
