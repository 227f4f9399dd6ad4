# SPDX-License-Identifier: PostgreSQL
"""The SQL side of mappings: howdah_mqtt.publish_table and its relatives, on a server without the suite."""
import json
import os
import threading

import psycopg2
import pytest

from suite import Postgres, wait_until

SQL = os.path.join(os.environ.get("HOWDAH_DATA") or "", "sql")
if not os.path.isdir(SQL):
    SQL = os.path.join(os.path.dirname(__file__), "..", "..", "sql")


@pytest.fixture(scope="module")
def server():
    p = Postgres(tcp=False)
    conn = p.connect("postgres")
    cur = conn.cursor()
    for role in ("alice", "bob"):
        cur.execute(f"CREATE ROLE {role} LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    cur.execute("CREATE ROLE member LOGIN IN ROLE alice; CREATE ROLE guest LOGIN NOINHERIT IN ROLE alice")
    with open(os.path.join(SQL, "howdah_mqtt", "0001-mqtt.sql")) as f:
        cur.execute("BEGIN;" + f.read() + ";COMMIT")
    conn.close()
    yield p
    p.close()


class Session:
    def __init__(self, server, user):
        self.conn = server.connect("postgres", user)

    def __call__(self, text, *args):
        with self.conn.cursor() as cur:
            cur.execute(text, args or None)
            return cur.fetchall() if cur.description else None

    def refused(self, code, text, *args):
        """The statement fails with this SQLSTATE; returns its diagnostics."""
        with pytest.raises(psycopg2.Error) as e:
            self(text, *args)
        assert e.value.pgcode == code, e.value
        return e.value.diag


@pytest.fixture
def db(server):
    """db(user) -> session; tables and mappings are gone afterwards."""
    made = []

    def session(user="postgres"):
        made.append(Session(server, user))
        return made[-1]
    yield session
    for s in made:
        s.conn.close()
    admin = Session(server, "postgres")
    for (name,) in admin("SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r','p','v')"
                         " AND relnamespace = 'public'::regnamespace AND NOT relispartition"):
        admin(f"DROP {'VIEW' if name.startswith('view') else 'TABLE'} IF EXISTS {name} CASCADE")
    admin("DELETE FROM howdah_mqtt.publish_mapping; DELETE FROM howdah_mqtt.node_state")
    admin.conn.close()


def published(s):
    return {r[0] for r in s("SELECT tablename FROM pg_publication_tables WHERE pubname = 'howdah'")}


def mappings(s):
    return s('SELECT "table", name, topic, qos, payload, published FROM howdah_mqtt.mapping ORDER BY 1, 2')


def test_add_replace_remove(db):
    alice = db("alice")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    assert published(alice) == {"publish_mapping"}
    alice("SELECT howdah_mqtt.publish_table('t', 'db/{table}/{id}')")
    assert mappings(alice) == [("t", "default", "db/{table}/{id}", 1, None, True)]
    assert published(alice) == {"publish_mapping", "t"}
    alice("SELECT howdah_mqtt.publish_table('t', 'x', 0, '{{{id}}}', 'second')")
    alice("SELECT howdah_mqtt.publish_table(relation => 't', topic => 'y', qos => 0)")
    assert mappings(alice) == [("t", "default", "y", 0, None, True),
                               ("t", "second", "x", 0, "{{{id}}}", True)]
    alice("SELECT howdah_mqtt.unpublish_table('t')")
    assert published(alice) == {"publish_mapping", "t"}
    alice("SELECT howdah_mqtt.unpublish_table('t', 'second')")
    assert published(alice) == {"publish_mapping"}
    d = alice.refused("42704", "SELECT howdah_mqtt.unpublish_table('t', 'second')")
    assert "howdah_mqtt.mapping" in d.message_hint


def test_all_in_the_callers_transaction(db):
    alice = db("alice")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    alice("BEGIN; SELECT howdah_mqtt.publish_table('t', 'x'); ROLLBACK")
    assert published(alice) == {"publish_mapping"} and mappings(alice) == []
    alice("SELECT howdah_mqtt.publish_table('t', 'x')")
    alice("BEGIN; SELECT howdah_mqtt.unpublish_table('t'); ROLLBACK")
    assert published(alice) == {"publish_mapping", "t"} and len(mappings(alice)) == 1


def test_only_the_owner(db):
    alice, bob = db("alice"), db("bob")
    alice("CREATE TABLE t (id int PRIMARY KEY); GRANT ALL ON t TO bob")
    d = bob.refused("42501", "SELECT howdah_mqtt.publish_table('t', 'x')")
    assert d.message_primary == "must be owner of table public.t" and "alice" in d.message_hint
    db("guest").refused("42501", "SELECT howdah_mqtt.publish_table('t', 'x')")
    db("member")("SELECT howdah_mqtt.publish_table('t', 'x')")
    bob.refused("42501", "SELECT howdah_mqtt.unpublish_table('t')")
    db()("SELECT howdah_mqtt.unpublish_table('t')")


def test_set_role_decides(db):
    alice, admin, guest = db("alice"), db(), db("guest")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    admin("SET ROLE bob")
    admin.refused("42501", "SELECT howdah_mqtt.publish_table('t', 'x')")
    guest("SET ROLE alice")
    guest("SELECT howdah_mqtt.publish_table('t', 'x')")


def test_definer_functions_act_as_their_owner(db):
    """Somebody else's function that a superuser comes to run must not publish with his rights."""
    alice, bob, admin = db("alice"), db("bob"), db()
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    bob("""CREATE FUNCTION pub(t regclass) RETURNS void LANGUAGE sql SECURITY DEFINER
        AS $$ SELECT howdah_mqtt.publish_table(t, 'stolen') $$""")
    bob("CREATE TABLE bobs (id int PRIMARY KEY)")
    admin.refused("42501", "SELECT pub('t')")
    alice("SELECT pub('bobs')")
    # An index expression runs as the owner of the table during maintenance by a superuser.
    bob("""CREATE FUNCTION trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        IF session_user <> 'bob' THEN PERFORM howdah_mqtt.publish_table('public.t', 'stolen'); END IF;
        RETURN $1; END $$;
        INSERT INTO bobs VALUES (1); CREATE INDEX trapped ON bobs (trap(id))""")
    admin.refused("42501", "REINDEX TABLE bobs")
    assert [m[0] for m in mappings(admin)] == ["bobs"]
    bob("DROP FUNCTION pub(regclass); DROP TABLE bobs; DROP FUNCTION trap(int)")


def test_the_way_around_is_closed(db):
    alice, bob = db("alice"), db("bob")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    columns = "(action, relation, topic, qos, name, caller)"
    bob.refused("42501", f"INSERT INTO howdah_mqtt.request {columns}"
                         " VALUES ('publish', 't', 'x', 1, 'n', 'alice')")
    bob.refused("42501", "INSERT INTO howdah_mqtt.request (action, relation, topic, qos, name)"
                         " VALUES ('publish', 't', 'x', 1, 'n')")
    bob.refused("42501", "SELECT * FROM howdah_mqtt.publish_mapping")
    bob.refused("42501", "INSERT INTO howdah_mqtt.publish_mapping VALUES (1, 't', 'n', 'x', 1)")
    bob.refused("42501", "SELECT howdah_mqtt.slot_created('a', '0/1')")
    bob.refused("42501", "SELECT * FROM howdah_mqtt.node_state")
    assert bob("SELECT count(*) FROM howdah_mqtt.mapping") == [(0,)]


def test_replica_identity_is_needed_and_the_hint_mends_it(db):
    alice = db("alice")
    cases = {
        "plain": ("(a int)", "FULL"),
        "uniq": ("(a int NOT NULL UNIQUE)", "USING INDEX uniq_a_key"),
        "nulls": ("(a int UNIQUE)", "FULL"),
        "late": ("(a int PRIMARY KEY DEFERRABLE)", "FULL"),
    }
    for name, (columns, remedy) in cases.items():
        alice(f"CREATE TABLE {name} {columns}")
        d = alice.refused("55000", f"SELECT howdah_mqtt.publish_table('{name}', 'x')")
        assert d.message_hint == f"ALTER TABLE public.{name} REPLICA IDENTITY {remedy};"
        alice(d.message_hint)
        alice(f"SELECT howdah_mqtt.publish_table('{name}', 'x')")
        alice(f"INSERT INTO {name} VALUES (1); UPDATE {name} SET a = 2; DELETE FROM {name}")
    alice("CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING")
    d = alice.refused("55000", "SELECT howdah_mqtt.publish_table('nothing', 'x')")
    assert d.message_hint == "ALTER TABLE public.nothing REPLICA IDENTITY DEFAULT;"


def test_partitions(db):
    alice = db("alice")
    alice("""CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
        CREATE TABLE p21 PARTITION OF p2 FOR VALUES FROM (10) TO (15)""")
    d = alice.refused("42809", "SELECT howdah_mqtt.publish_table('p21', 'x')")
    assert d.message_hint.endswith("map public.p.")
    alice("ALTER TABLE p21 REPLICA IDENTITY NOTHING")
    d = alice.refused("55000", "SELECT howdah_mqtt.publish_table('p', 'x')")
    assert "p21" in d.message_hint
    alice(d.message_hint)
    alice("SELECT howdah_mqtt.publish_table('p', 'x')")
    assert "p" in published(alice) and "p1" not in published(alice)


def test_what_is_no_table(db):
    alice, admin = db("alice"), db()
    alice("CREATE VIEW view1 AS SELECT 1; CREATE UNLOGGED TABLE u (a int PRIMARY KEY);"
          "CREATE TEMP TABLE tmp (a int PRIMARY KEY)")
    alice.refused("42809", "SELECT howdah_mqtt.publish_table('view1', 'x')")
    alice.refused("42809", "SELECT howdah_mqtt.publish_table('tmp', 'x')")
    d = alice.refused("42809", "SELECT howdah_mqtt.publish_table('u', 'x')")
    assert d.message_hint == "ALTER TABLE public.u SET LOGGED;"
    admin.refused("42809", "SELECT howdah_mqtt.publish_table('pg_class', 'x')")
    admin.refused("42809", "SELECT howdah_mqtt.publish_table('howdah_mqtt.node_state', 'x')")
    admin.refused("42P01", "SELECT howdah_mqtt.publish_table('nosuch', 'x')")
    admin.refused("42P01", "SELECT howdah_mqtt.publish_table(4294967295::oid, 'x')")


@pytest.mark.parametrize("topic", ["", None, "a/+", "#", "{", "}", "a{b", "{}", "{a{b}}", "$SYS/x",
                                   "a\nb", "x" * 65536])
def test_bad_topics(db, topic):
    alice = db("alice")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    d = alice.refused("22023", "SELECT howdah_mqtt.publish_table('t', %s)", topic)
    assert "{column}" in d.message_hint


def test_templates(db):
    alice = db("alice")
    alice('CREATE TABLE t (id int PRIMARY KEY, "a + #" text)')
    for topic in ("a/{{+}}".replace("+", "x"), "{a + #}/{nothing}", "{id}{id}", "äöü"):
        alice("SELECT howdah_mqtt.publish_table('t', %s)", topic)
    alice.refused("22023", "SELECT howdah_mqtt.publish_table('t', 'x', 1, '{')")
    alice.refused("22023", "SELECT howdah_mqtt.publish_table('t', 'x', 1, %s)", "x" * 65537)
    alice("SELECT howdah_mqtt.publish_table('t', 'x', 1, '+ # {{}} {new}')")
    for qos in (2, -1, None):
        alice.refused("22023", "SELECT howdah_mqtt.publish_table('t', 'x', %s)", qos)
    alice.refused("22023", "SELECT howdah_mqtt.publish_table('t', 'x', name => '')")


def test_lock_timeout(db):
    alice, writer = db("alice"), db("alice")
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    writer("BEGIN; INSERT INTO t VALUES (1)")
    alice("SET howdah_mqtt.lock_timeout = '100ms'")
    d = alice.refused("55P03", "SELECT howdah_mqtt.publish_table('t', 'x')")
    assert "public.t within 100ms" in d.message_primary
    assert "SET howdah_mqtt.lock_timeout" in d.message_hint
    assert alice("SHOW lock_timeout") == [("0",)]
    assert mappings(alice) == [] and published(alice) == {"publish_mapping"}
    alice("SET howdah_mqtt.lock_timeout = '30s'")
    waiting = threading.Thread(target=alice, args=("SELECT howdah_mqtt.publish_table('t', 'x')",))
    waiting.start()
    admin = db()
    wait_until("publish_table waits", lambda: admin(
        "SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0] == 1)
    writer("COMMIT")
    waiting.join(30)
    assert len(mappings(alice)) == 1


def test_drop_and_rename(db):
    alice, admin = db("alice"), db()
    alice("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    alice("SELECT howdah_mqtt.publish_table('t', 'x'), howdah_mqtt.publish_table('u', 'x')")
    alice("ALTER TABLE t RENAME TO v; DROP TABLE u")
    assert {m[0] for m in mappings(alice)} == {"v", None}
    # What a dropped table left can be removed by the schema's owner, and goes with the next mapping.
    relid = admin('SELECT relid FROM howdah_mqtt.mapping WHERE "table" IS NULL')[0][0]
    alice.refused("42501", f"SELECT howdah_mqtt.unpublish_table({relid}::oid)")
    admin(f"SELECT howdah_mqtt.unpublish_table({relid}::oid)")
    alice("CREATE TABLE w (id int PRIMARY KEY)")
    alice("SELECT howdah_mqtt.publish_table('w', 'x')")
    alice("DROP TABLE w")
    alice("SELECT howdah_mqtt.publish_table('v', 'x')")
    assert [m[0] for m in mappings(alice)] == ["v"]


def test_slot_created_and_move_by_dump(db, server):
    alice, admin = db("alice"), db()
    alice("CREATE TABLE t (id int PRIMARY KEY)")
    alice("SELECT howdah_mqtt.publish_table('t', 'x/{id}', 1, 'p')")
    admin("SELECT howdah_mqtt.slot_created('n', '0/10')")
    # As after pg_dump | psql: the table has another OID there, the column relation found it by name.
    admin("UPDATE howdah_mqtt.publish_mapping SET relid = 1")
    admin("SELECT howdah_mqtt.slot_created('n', '0/20'), howdah_mqtt.slot_created('m', '0/5')")
    rows = admin("SELECT node, lsn::text, mappings FROM howdah_mqtt.node_state ORDER BY node")
    relid = admin("SELECT 't'::regclass::oid::bigint")[0][0]
    expected = [{"relid": relid, "name": "default", "topic": "x/{id}", "qos": 1, "payload": "p"}]
    assert rows == [("m", "0/5", expected), ("n", "0/20", expected)]
    assert json.dumps(expected)


def test_publication_of_somebody_else_is_mended(db):
    """0001 found a publication of that name: the mapping table is added, partition roots are on."""
    admin = db()
    assert admin("SELECT pubviaroot FROM pg_publication WHERE pubname = 'howdah'") == [(True,)]
    with open(os.path.join(SQL, "howdah_mqtt", "0001-mqtt.sql")) as f:
        text = f.read()
    admin("BEGIN; DROP SCHEMA howdah_mqtt CASCADE; ALTER PUBLICATION howdah SET"
          " (publish_via_partition_root = false)")
    admin(text)
    assert published(admin) == {"publish_mapping"}
    assert admin("SELECT pubviaroot FROM pg_publication WHERE pubname = 'howdah'") == [(True,)]
    admin("ROLLBACK")
