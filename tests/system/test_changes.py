# SPDX-License-Identifier: PostgreSQL
"""Out of PostgreSQL: what is committed to a mapped table reaches a stock MQTT subscriber, exactly."""
import json
import threading

import pytest

from suite import external, wait_until

_serial = 0


@pytest.fixture
def table(suite):
    """A mapped table of its own: object with name, conn, sub, and sql()."""
    global _serial
    _serial += 1

    class Table:
        name = f"t{_serial}"
        topic = f"out/{name}"

        def create(self, columns, mapping=None, identity=None, **sub):
            self.conn = suite.connect()
            self.sql(f"CREATE TABLE {self.name} ({columns})")
            if identity:
                self.sql(f"ALTER TABLE {self.name} REPLICA IDENTITY {identity}")
            self.sql("SELECT howdah_mqtt.publish_table(%s::regclass, %s)", self.name,
                     mapping or f"{self.topic}/{{op}}/{{id}}")
            self.sub = suite.subscribe(f"{self.topic}/#", **sub)
            return self

        def sql(self, text, *args):
            with self.conn.cursor() as cur:
                cur.execute(text, args or None)
                return cur.fetchall() if cur.description else None

        def events(self, n, timeout=30):
            self.sub.wait_count(n, timeout)
            return self.sub.payloads()

        def quiet(self, suite):
            """A last row of another table has come through, so nothing more is to come for us."""
            acked = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
            wait_until("everything is acknowledged", lambda: suite.sql(
                "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s",
                acked, f"howdah_{suite.node}")[0][0])
    return Table()


def test_insert_update_delete_truncate(suite, table):
    t = table.create("id int PRIMARY KEY, a text")
    t.sql(f"INSERT INTO {t.name} VALUES (1, 'one')")
    t.sql(f"UPDATE {t.name} SET a = 'eins' WHERE id = 1")
    t.sql(f"DELETE FROM {t.name} WHERE id = 1")
    t.sql(f"INSERT INTO {t.name} VALUES (2, NULL)")
    t.sql(f"TRUNCATE {t.name}")
    events = t.events(5)
    assert [e["op"] for e in events] == ["insert", "update", "delete", "insert", "truncate"]
    assert [m["topic"] for m in t.sub.snapshot()] == [
        f"{t.topic}/insert/1", f"{t.topic}/update/1", f"{t.topic}/delete/1", f"{t.topic}/insert/2",
        f"{t.topic}/truncate/"]
    assert all(m["qos"] == 1 for m in t.sub.snapshot())
    ins, upd, dele, ins2, trunc = events
    assert set(ins) >= {"op", "schema", "table", "lsn", "xid", "ts", "new", "old", "unchanged"}
    assert (ins["schema"], ins["table"]) == ("public", t.name)
    assert ins["new"] == {"id": 1, "a": "one"} and not ins["old"]
    assert upd["new"] == {"id": 1, "a": "eins"} and not upd["old"]
    assert not dele["new"] and dele["old"] == {"id": 1}
    assert ins2["new"] == {"id": 2, "a": None}
    assert not trunc["new"] and not trunc["old"]
    lsns = [int(e["lsn"].split("/")[0], 16) << 32 | int(e["lsn"].split("/")[1], 16) for e in events]
    assert lsns == sorted(lsns)
    assert len({e["xid"] for e in events}) == 5


def test_user_properties(suite, table):
    t = table.create("id int PRIMARY KEY")
    t.sql(f"INSERT INTO {t.name} VALUES (1)")
    message = t.sub.wait_count(1)[0]
    event = json.loads(message["payload"])
    props = json.dumps(message.get("properties", message))
    for name in ("lsn", "xid", "op"):
        assert name in props
    assert event["lsn"] in props and "insert" in props


def test_key_change(suite, table):
    t = table.create("id int PRIMARY KEY, a text")
    t.sql(f"INSERT INTO {t.name} VALUES (1, 'x')")
    t.sql(f"UPDATE {t.name} SET id = 7 WHERE id = 1")
    upd = t.events(2)[1]
    assert upd["old"] == {"id": 1} and upd["new"] == {"id": 7, "a": "x"}
    assert t.sub.snapshot()[1]["topic"].endswith("/update/7")


def test_large_transaction(suite, table):
    n = 200_000
    t = table.create("id int PRIMARY KEY, a text", mapping=None)
    t.sql(f"INSERT INTO {t.name} SELECT g, 'row ' || g FROM generate_series(1, {n}) g")
    messages = t.sub.wait_count(n, 240)
    ids = [json.loads(m["payload"])["new"]["id"] for m in messages]
    assert ids == list(range(1, n + 1))


def test_savepoints(suite, table):
    t = table.create("id int PRIMARY KEY")
    t.sql(f"""BEGIN; INSERT INTO {t.name} VALUES (1); SAVEPOINT a; INSERT INTO {t.name} VALUES (2);
        SAVEPOINT b; INSERT INTO {t.name} VALUES (3); ROLLBACK TO b; INSERT INTO {t.name} VALUES (4);
        ROLLBACK TO a; INSERT INTO {t.name} VALUES (5); SAVEPOINT c; INSERT INTO {t.name} VALUES (6);
        RELEASE c; COMMIT""")
    t.sql(f"BEGIN; INSERT INTO {t.name} VALUES (7); ROLLBACK")
    t.sql(f"INSERT INTO {t.name} VALUES (8)")
    assert [e["new"]["id"] for e in t.events(4)] == [1, 5, 6, 8]
    t.quiet(suite)
    assert len(t.sub.snapshot()) == 4


def test_prepared_transactions(suite, table):
    t = table.create("id int PRIMARY KEY")
    t.sql(f"BEGIN; INSERT INTO {t.name} VALUES (1); PREPARE TRANSACTION 'p1'")
    t.sql(f"BEGIN; INSERT INTO {t.name} VALUES (2); PREPARE TRANSACTION 'p2'")
    t.sql(f"INSERT INTO {t.name} VALUES (3)")
    assert [e["new"]["id"] for e in t.events(1)] == [3]
    t.sql("COMMIT PREPARED 'p2'")
    t.sql("ROLLBACK PREPARED 'p1'")
    assert [e["new"]["id"] for e in t.events(2)] == [3, 2]
    t.quiet(suite)
    assert len(t.sub.snapshot()) == 2


def test_altered_in_mid_stream(suite, table):
    t = table.create("id int PRIMARY KEY, a text")
    t.sql(f"INSERT INTO {t.name} VALUES (1, 'x')")
    t.sql(f"""BEGIN; INSERT INTO {t.name} VALUES (2, 'y'); ALTER TABLE {t.name} ADD b int DEFAULT 5;
        INSERT INTO {t.name} VALUES (3, 'z', 6); ALTER TABLE {t.name} DROP a;
        INSERT INTO {t.name} VALUES (4, 7); COMMIT""")
    t.sql(f"ALTER TABLE {t.name} RENAME b TO c")
    t.sql(f"INSERT INTO {t.name} VALUES (5, 8)")
    new = [e["new"] for e in t.events(5)]
    assert new[0] == {"id": 1, "a": "x"} and new[1] == {"id": 2, "a": "y"}
    assert new[2] == {"id": 3, "a": "z", "b": 6} and new[3] == {"id": 4, "b": 7}
    assert new[4] == {"id": 5, "c": 8}


def test_partitions(suite, table):
    t = table
    t.conn = suite.connect()
    t.sql(f"CREATE TABLE {t.name} (id int PRIMARY KEY, a text) PARTITION BY RANGE (id)")
    t.sql(f"CREATE TABLE {t.name}_1 PARTITION OF {t.name} FOR VALUES FROM (0) TO (100)")
    t.sql(f"CREATE TABLE {t.name}_2 PARTITION OF {t.name} FOR VALUES FROM (100) TO (200)")
    t.sql("SELECT howdah_mqtt.publish_table(%s::regclass, %s)", t.name, f"{t.topic}/{{table}}/{{id}}")
    t.sub = suite.subscribe(f"{t.topic}/#")
    t.sql(f"INSERT INTO {t.name} VALUES (1, 'a'), (101, 'b')")
    t.sql(f"INSERT INTO {t.name}_2 VALUES (102, 'c')")
    t.sql(f"UPDATE {t.name} SET id = 103 WHERE id = 1")
    events = t.events(5)
    assert {e["table"] for e in events} == {t.name}
    assert [m["topic"] for m in t.sub.snapshot()][:3] == [f"{t.topic}/{t.name}/{i}"
                                                          for i in (1, 101, 102)]
    assert [e["op"] for e in events[3:]] == ["delete", "insert"]


def test_toast_unchanged(suite, table):
    t = table.create("id int PRIMARY KEY, big text, a int")
    t.sql(f"ALTER TABLE {t.name} ALTER big SET STORAGE EXTERNAL")
    t.sql(f"INSERT INTO {t.name} VALUES (1, repeat('0123456789', 10000), 1)")
    t.sql(f"UPDATE {t.name} SET a = 2")
    ins, upd = t.events(2)
    assert ins["new"]["big"] == "0123456789" * 10000
    assert upd["unchanged"] == ["big"] and upd["new"] == {"id": 1, "a": 2}


def test_toast_merged_under_full(suite, table):
    t = table.create("id int PRIMARY KEY, big text, a int", identity="FULL")
    t.sql(f"ALTER TABLE {t.name} ALTER big SET STORAGE EXTERNAL")
    t.sql(f"INSERT INTO {t.name} VALUES (1, repeat('0123456789', 10000), 1)")
    t.sql(f"UPDATE {t.name} SET a = 2")
    upd = t.events(2)[1]
    assert not upd["unchanged"] and upd["new"] == {"id": 1, "big": "0123456789" * 10000, "a": 2}
    assert upd["old"] == {"id": 1, "big": "0123456789" * 10000, "a": 1}


TYPES = [
    ("bool", ["true", "false"]),
    ("int2", ["-32768", "32767"]), ("int4", ["-2147483648"]), ("int8", ["9223372036854775807"]),
    ("oid", ["4294967295"]),
    ("float4", ["1.5", "1e30", "1e-30", "'NaN'", "'-Infinity'", "0.1"]),
    ("float8", ["1e300", "1.7976931348623157e308", "5e-324", "'Infinity'", "-0.0", "123456789.25"]),
    ("numeric", ["1.50", "0", "-99999999999999999999999999.000001", "'NaN'", "1e-20"]),
    ("numeric(10,2)", ["12345678.90"]),
    ("money", ["12.34"]),
    ("text", ["''", "'it''s \"quoted\" \\ back'", "E'line\\nfeed\\ttab\\u0001'", "'žluťoučký 🐘'"]),
    ("varchar(10)", ["'abc'"]), ("char(5)", ["'ab'"]), ("\"char\"", ["'x'"]), ("name", ["'n'"]),
    ("bytea", ["'\\xdeadbeef'", "''"]),
    ("date", ["'2026-02-28'", "'infinity'", "'0044-03-15 BC'"]),
    ("timestamp", ["'2026-01-02 03:04:05.678901'", "'-infinity'", "'0001-01-01 00:00:00 BC'"]),
    ("timestamptz", ["'2026-01-02 03:04:05+05:30'", "'infinity'", "'1900-01-01 00:00:00.5+00'"]),
    ("time", ["'03:04:05.6'"]), ("timetz", ["'03:04:05+02'"]),
    ("interval", ["'1 year 2 months 3 days 04:05:06.7'", "'-1 day'"]),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", ["'{\"b\": 1, \"a\": [1, 2.50, null, \"x\"]}'", "'\"str\"'", "'null'"]),
    ("jsonb", ["'{\"b\": 1, \"a\": {\"c\": [true]}}'", "'1e5'"]),
    ("xml", ["'<a>b</a>'"]),
    ("inet", ["'192.168.1.1/24'"]), ("cidr", ["'10.0.0.0/8'"]), ("macaddr", ["'08:00:2b:01:02:03'"]),
    ("bit(3)", ["B'101'"]), ("varbit", ["B'1'"]),
    ("point", ["'(1,2)'"]), ("box", ["'(1,1),(0,0)'"]), ("tsvector", ["'a:1 b:2'"]),
    ("int4range", ["'[1,5)'", "'empty'"]), ("tstzrange", ["'[2026-01-01,)'"]),
    ("int4[]", ["'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'", "'[2:3]={5,6}'"]),
    ("text[]", ["ARRAY['a b','c\"d','e\\f','NULL',NULL,'','{}',',']"]),
    ("timestamptz[]", ["ARRAY['2026-01-02 03:04:05+00'::timestamptz]"]),
    ("jsonb[]", ["ARRAY['{\"a\": 1}'::jsonb, NULL]"]),
    ("box[]", ["ARRAY['(1,1),(0,0)'::box, '(2,2),(1,1)'::box]"]),
    ("bool[]", ["'{t,f}'"]), ("float8[]", ["'{1e30,NaN}'"]),
    ("mood", ["'sad'"]), ("mood[]", ["'{sad,ok}'"]),
    ("pair", ["ROW(1, 'a \"b\" (c), d\\e')", "ROW(NULL, '')"]), ("pair[]", ["ARRAY[ROW(1,'x')::pair]"]),
    ("nested", ["ROW(ROW(2,'y')::pair, '{1,2}', '2026-01-02 03:04:05+00')"]),
    ("positive", ["5"]), ("positive[]", ["'{6}'"]),
    ("pg_lsn", ["'16/B374D848'"]), ("regclass", ["'pg_class'"]),
]


def test_types_as_to_jsonb(suite, table):
    conn = suite.connect()
    with conn.cursor() as cur:
        cur.execute("""CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (n int, s text);
            CREATE TYPE nested AS (p pair, list int[], at timestamptz);
            CREATE DOMAIN positive AS int CHECK (VALUE > 0)""")
    columns = ", ".join(f"c{i} {name}" for i, (name, _) in enumerate(TYPES))
    t = table.create(f"id int PRIMARY KEY, {columns}")
    t.sql("SET timezone = 'UTC'")
    n = 0
    for i, (name, values) in enumerate(TYPES):
        for value in values:
            n += 1
            t.sql(f"INSERT INTO {t.name} (id, c{i}) VALUES ({n}, {value})")
    t.sub.wait_count(n)
    expected = dict(t.sql(f"SELECT id, to_jsonb(x)::text FROM {t.name} x"))
    got = {e["new"]["id"]: e["new"] for e in t.sub.payloads()}
    for key, text in expected.items():
        want = json.loads(text, parse_float=str, parse_int=str)
        have = json.loads(next(m["payload"] for m in t.sub.snapshot()
                               if json.loads(m["payload"])["new"]["id"] == key),
                          parse_float=str, parse_int=str)["new"]
        differing = {c: (have.get(c), want[c]) for c in want if have.get(c) != want[c]}
        assert not differing and set(have) == set(want), f"row {key}: {differing}"
    assert len(got) == n


def test_topic_percent_encoding(suite, table):
    t = table.create("id int PRIMARY KEY, a text", mapping=None)
    t.sql("SELECT howdah_mqtt.publish_table(%s::regclass, %s, name => 'b')", t.name,
          f"{t.topic}/b/{{a}}/{{nothere}}/end")
    t.sql(f"INSERT INTO {t.name} VALUES (1, 'a/b+c#d%e'), (2, NULL)")
    topics = sorted(m["topic"] for m in t.sub.wait_count(4))
    assert topics == sorted([f"{t.topic}/insert/1", f"{t.topic}/insert/2",
                             f"{t.topic}/b/a%2Fb%2Bc%23d%25e//end", f"{t.topic}/b///end"])


def test_mapping_under_concurrent_writes(suite, table):
    """Added and removed while four sessions write: nothing before its place in the WAL, nothing
    missing after it, by the LSNs of the mapping's own commits."""
    t = table
    t.conn = suite.connect()
    t.sql(f"CREATE TABLE {t.name} (id bigserial PRIMARY KEY, w int, before bool)")
    sub = suite.subscribe(f"{t.topic}/#")
    stop = threading.Event()
    written = []
    lock = threading.Lock()

    def write(w):
        conn = suite.connect()
        with conn.cursor() as cur:
            while not stop.is_set():
                cur.execute(f"INSERT INTO {t.name} (w) VALUES (%s) RETURNING id", (w,))
                row = cur.fetchone()[0]
                with lock:
                    written.append(row)
    writers = [threading.Thread(target=write, args=(w,)) for w in range(4)]
    for w in writers:
        w.start()
    try:
        windows = []
        for _ in range(3):
            wait_until("rows", lambda n=len(written): len(written) > n + 100)
            # SHARE ROW EXCLUSIVE is held to the commit, so ids seen under it are exact bounds.
            t.sql("BEGIN")
            t.sql("SELECT howdah_mqtt.publish_table(%s::regclass, %s)", t.name, f"{t.topic}/{{id}}")
            low = {r[0] for r in t.sql(f"SELECT id FROM {t.name}")}
            t.sql("COMMIT")
            wait_until("rows", lambda n=len(written): len(written) > n + 300)
            t.sql("BEGIN")
            t.sql("SELECT howdah_mqtt.unpublish_table(%s::regclass)", t.name)
            high = {r[0] for r in t.sql(f"SELECT id FROM {t.name}")}
            t.sql("COMMIT")
            windows.append(high - low)
    finally:
        stop.set()
        for w in writers:
            w.join()
    want = set().union(*windows)
    sub.wait_count(len(want), 60)
    t.quiet(suite)
    got = [p["new"]["id"] for p in sub.payloads()]
    assert len(got) == len(set(got))
    assert set(got) == want


def test_three_one_one_subscriber_and_qos0(suite, table):
    t = table.create("id int PRIMARY KEY", qos=0, version="mqttv311")
    t.sql(f"INSERT INTO {t.name} SELECT generate_series(1, 100)")
    assert [e["new"]["id"] for e in t.events(100)] == list(range(1, 101))
    assert {m["qos"] for m in t.sub.snapshot()} == {0}


def test_idle_database_holds_no_wal(suite):
    """Writes to a table that is not mapped must move the slot on."""
    suite.sql("CREATE TABLE unmapped (a int)")
    suite.sql("INSERT INTO unmapped SELECT generate_series(1, 1000)")
    lsn = suite.sql("SELECT pg_current_wal_lsn()")[0][0]
    wait_until("confirmed_flush follows", lambda: suite.sql(
        "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots", lsn)[0][0], 30)


def test_database_in_latin1(make_suite, make_postgres):
    """Topics and payloads are UTF-8, though the database is not."""
    pg, suite = external(make_suite, make_postgres, database="ENCODING 'LATIN1' TEMPLATE template0")
    conn = pg.connect()
    conn.set_client_encoding("UTF8")
    cur = conn.cursor()
    cur.execute('CREATE TABLE "Maße" ("Länge" int PRIMARY KEY, "ÿ" text)')
    cur.execute("""SELECT howdah_mqtt.publish_table('"Maße"'::regclass, 'größe/{Länge}/{ÿ}')""")
    sub = suite.subscribe("größe/#")
    cur.execute("""INSERT INTO "Maße" VALUES (1, 'naïf')""")
    (message,) = sub.wait_count(1)
    assert message["topic"] == "größe/1/naïf"
    assert json.loads(message["payload"])["new"] == {"Länge": 1, "ÿ": "naïf"}
    conn.close()
