# SPDX-License-Identifier: PostgreSQL
"""
The WAL storm: sessions run random transactions (nested savepoints, rollbacks, prepared transactions,
DDL, TOAST, truncates, updates of every replica identity) while the processes on the way are killed
and the server is restarted. Two nodes follow the same database, one with streaming and one without;
the tables that each rebuilds from what it read equal the source's.

HOWDAH_WAL_STORM_SECONDS and HOWDAH_WAL_STORM_SEED change its length and repeat a run.
"""
import os
import random
import signal
import threading
import time

import psycopg2

from pgoutput import Tables, Tap, compare, lsn_int, rows_of, transactions
from suite import wait_until

SECONDS = int(os.environ.get("HOWDAH_WAL_STORM_SECONDS", 60))
SEED = int(os.environ.get("HOWDAH_WAL_STORM_SEED", time.time_ns() % 1_000_000))
SESSIONS = 4
KEYS = {"s_pk": ["id"], "s_full": ["id"], "s_index": ["u"], "s_part": ["id", "r"], "s_truncate": ["id"],
        **{f"s_ddl{n}": ["id"] for n in range(SESSIONS)}}
SCHEMA = """
    CREATE SEQUENCE ids;
    CREATE TABLE s_pk (id bigint PRIMARY KEY, a int, big text, n numeric);
    ALTER TABLE s_pk ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE s_full (id bigint, a int, big text);
    ALTER TABLE s_full REPLICA IDENTITY FULL; ALTER TABLE s_full ALTER big SET STORAGE EXTERNAL;
    CREATE INDEX ON s_full (id);
    CREATE TABLE s_index (id bigint, u text NOT NULL, a int);
    CREATE UNIQUE INDEX s_index_u ON s_index (u);
    ALTER TABLE s_index REPLICA IDENTITY USING INDEX s_index_u; CREATE INDEX ON s_index (id);
    CREATE TABLE s_part (id bigint, r int, a int, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
    CREATE TABLE s_part1 PARTITION OF s_part FOR VALUES FROM (0) TO (10);
    CREATE TABLE s_part2 PARTITION OF s_part FOR VALUES FROM (10) TO (20);
    CREATE TABLE s_truncate (id bigint PRIMARY KEY, t text);
    CREATE TABLE s_marker (id int)"""


class Session(threading.Thread):
    """Random transactions over one connection; every error of the server is survived."""

    def __init__(self, pg, n, stop):
        super().__init__(daemon=True)
        self.pg, self.n, self.stop = pg, n, stop
        self.rnd = random.Random(SEED * 100 + n)
        self.done = {"commit": 0, "rollback": 0, "prepare": 0, "error": 0}
        self.error = None

    def run(self):
        conn = None
        try:
            while not self.stop.is_set():
                conn = conn or self.connect()
                if conn is None:
                    self.stop.wait(0.2)  # the server is being restarted
                elif not self.attempt(conn):
                    conn.close()
                    conn = None
        except Exception as e:
            self.error = e
        if conn:
            conn.close()

    def connect(self):
        try:
            conn = self.pg.connect()
            conn.cursor().execute("SET lock_timeout = '300ms'; SET deadlock_timeout = '100ms'")
            return conn
        except psycopg2.Error:
            return None

    def attempt(self, conn):
        """One transaction, whatever becomes of it. False: the connection is gone."""
        try:
            try:
                with conn.cursor() as cur:
                    self.transaction(cur)
            except psycopg2.Error:
                self.done["error"] += 1
                conn.cursor().execute("ROLLBACK")
            return True
        except psycopg2.Error:
            return False

    def transaction(self, cur):
        r = self.rnd
        saved = []
        cur.execute("BEGIN")
        for _ in range(r.choice([1, 1, 2, 5, 15])):
            what = r.random()
            if what < 0.15:
                saved.append(f"s{len(saved)}")
                cur.execute(f"SAVEPOINT {saved[-1]}")
            elif what < 0.25 and saved:
                at = r.randrange(len(saved))
                cur.execute(f"ROLLBACK TO {saved[at]}")
                del saved[at + 1:]
            elif what < 0.3 and saved:
                at = r.randrange(len(saved))
                cur.execute(f"RELEASE {saved[at]}")
                del saved[at:]
            else:
                r.choice([self.insert, self.insert, self.update, self.update, self.delete, self.ddl,
                          self.truncate])(cur)
        self.end(cur)

    def end(self, cur):
        how = self.rnd.choices(["commit", "rollback", "prepare"], [70, 20, 10])[0]
        if how == "prepare":
            gid = f"g{self.n} '{self.rnd.randrange(3)}"
            cur.execute("PREPARE TRANSACTION %s", (gid,))
            if self.rnd.random() < 0.3:
                self.stop.wait(self.rnd.random())
            cur.execute(f"{self.rnd.choice(['COMMIT', 'COMMIT', 'ROLLBACK'])} PREPARED %s", (gid,))
        else:
            cur.execute(how)
        self.done[how] += 1

    def some(self, cur):
        """A stretch of ids that may exist."""
        cur.execute("SELECT last_value FROM ids")
        at = self.rnd.randrange(max(1, cur.fetchone()[0]))
        return at, at + self.rnd.choice([1, 5, 50])

    def insert(self, cur):
        r = self.rnd
        n = r.choice([1, 1, 3, 20, 20, 400, 1500])
        big = r.choice(["''", "repeat('x', 100)", "repeat(md5(g::text), 100)" if n < 30 else "NULL"])
        cur.execute(r.choice([
            f"INSERT INTO s_pk SELECT nextval('ids'), g, {big}, g / 7.0 FROM generate_series(1, {n}) g",
            f"INSERT INTO s_full SELECT nextval('ids'), g, {big} FROM generate_series(1, {n}) g",
            f"INSERT INTO s_index SELECT i, 'u' || i, i % 10 FROM (SELECT nextval('ids') i"
            f" FROM generate_series(1, {n}) g) q",
            f"INSERT INTO s_part SELECT nextval('ids'), g % 20, 0 FROM generate_series(1, {n}) g",
            f"INSERT INTO s_truncate SELECT nextval('ids'), {big} FROM generate_series(1, {min(n, 20)}) g",
            f"INSERT INTO s_ddl{self.n} (id) SELECT nextval('ids') FROM generate_series(1, {n}) g"]))

    def update(self, cur):
        a, b = self.some(cur)
        cur.execute(self.rnd.choice([
            "UPDATE s_pk SET a = a + 1 WHERE id BETWEEN %s AND %s",
            "UPDATE s_pk SET id = nextval('ids') WHERE id BETWEEN %s AND %s",
            "UPDATE s_pk SET big = big || 'y' WHERE id BETWEEN %s AND %s",
            "UPDATE s_full SET a = a + 1 WHERE id BETWEEN %s AND %s",
            "UPDATE s_full SET id = nextval('ids') WHERE id BETWEEN %s AND %s",
            "UPDATE s_index SET a = a + 1 WHERE id BETWEEN %s AND %s",
            "UPDATE s_index SET u = u || '+' WHERE id BETWEEN %s AND %s",
            "UPDATE s_part SET r = (r + 7) %% 20 WHERE id BETWEEN %s AND %s",
            f"UPDATE s_ddl{self.n} SET id = nextval('ids') WHERE id BETWEEN %s AND %s"]), (a, b))

    def delete(self, cur):
        table = self.rnd.choice(list(KEYS))
        cur.execute(f"DELETE FROM {table} WHERE id BETWEEN %s AND %s", self.some(cur))

    def truncate(self, cur):
        cur.execute(self.rnd.choice(["TRUNCATE s_truncate", "TRUNCATE s_truncate", f"TRUNCATE s_ddl{self.n}",
                                     f"TRUNCATE s_truncate, s_ddl{self.n}"]))

    def ddl(self, cur):
        table = f"s_ddl{self.n}"
        if self.rnd.random() < 0.6:
            cur.execute(f"SELECT count(*) FROM pg_attribute WHERE attrelid = '{table}'::regclass")
            if cur.fetchone()[0] > 800:
                return
            cur.execute("SELECT nextval('ids')")
            name = f"c{cur.fetchone()[0]}"
            cur.execute(f"ALTER TABLE {table} ADD COLUMN {name} text")
            cur.execute(f"INSERT INTO {table} (id, {name}) SELECT nextval('ids'), 'v' || g"
                        f" FROM generate_series(1, {self.rnd.choice([1, 500])}) g")
        else:
            cur.execute("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 1"
                        " AND NOT attisdropped ORDER BY random() LIMIT 1", (table,))
            row = cur.fetchone()
            if row:
                cur.execute(f"ALTER TABLE {table} DROP COLUMN {row[0]}")


def disturb(pg, taps, stop, counts, seed):
    """Kills workers, ends walsenders, restarts the server, switches the streaming of everything."""
    rnd = random.Random(seed)
    restart_at = time.monotonic() + 15
    while not stop.wait(rnd.uniform(0.3, 1.5)):
        what = rnd.choice(["walstreamd", "walstreamd", "brokerd", "walsender", "immediate"])
        try:
            if time.monotonic() > restart_at:
                what, restart_at = "server", time.monotonic() + 20
                pg.stop(signal.SIGQUIT)
                pg.start()
            elif what in ("walstreamd", "brokerd"):
                rnd.choice(taps).suite.kill(what)
            else:
                conn = pg.connect()
                if what == "walsender":
                    conn.cursor().execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
                elif conn.server_version >= 160000:
                    mode = rnd.choice(["immediate", "buffered"])
                    conn.cursor().execute(f"ALTER SYSTEM SET debug_logical_replication_streaming = {mode}")
                    conn.cursor().execute("SELECT pg_reload_conf()")
                conn.close()
            counts[what] = counts.get(what, 0) + 1
        except (AssertionError, ProcessLookupError, psycopg2.Error):
            pass  # it was dead already


def finish_prepared(cur):
    cur.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
    for i, (gid,) in enumerate(cur.fetchall()):
        cur.execute(f"{'COMMIT' if i % 2 else 'ROLLBACK'} PREPARED %s", (gid,))


def check(tap, cur):
    """The tables that this tap's records make equal the source's; how many changes there were."""
    tables = Tables(KEYS)
    tables.rows["s_marker"] = {}
    tables.keys = {**KEYS, "s_marker": ["id"]}
    n = 0
    for txn in transactions(tap.records()):
        for _, m in txn:
            tables.apply(m)
            n += m["type"] in "IUDT"
    for name, key in KEYS.items():
        wrong = compare(tables.rows[name], rows_of(cur, name, key))
        assert not wrong, f"seed {SEED}, node {tap.suite.node}, {name}: {len(wrong)} differ: {wrong[:5]}"
    return n


def test_storm(make_suite, make_postgres, report):
    pg = make_postgres(settings="logical_decoding_work_mem = 64kB\nmax_replication_slots = 10\n")
    admin = pg.connect("postgres")
    admin.cursor().execute("CREATE DATABASE howdah")
    admin.close()
    report(f"WAL storm: seed {SEED} begins")
    modes = {"plain": "off", "streamed": random.Random(SEED).choice(["on", "parallel"])}
    taps = [Tap(make_suite, pg, f'streaming = "{mode}"; transaction_memory = "1MB";', node=node)
            for node, mode in modes.items()]
    conn = pg.connect()
    cur = conn.cursor()
    cur.execute(SCHEMA)
    for n in range(SESSIONS):
        cur.execute(f"CREATE TABLE s_ddl{n} (id bigint PRIMARY KEY)")
    for table in [*KEYS, "s_marker"]:
        cur.execute(f"ALTER PUBLICATION howdah ADD TABLE {table}")
    conn.close()

    stop, counts = threading.Event(), {}
    sessions = [Session(pg, n, stop) for n in range(SESSIONS)]
    troublemaker = threading.Thread(target=disturb, args=(pg, taps, stop, counts, SEED))
    for thread in [*sessions, troublemaker]:
        thread.start()
    stop.wait(SECONDS)
    stop.set()
    for thread in [*sessions, troublemaker]:
        thread.join(60)
        assert not thread.is_alive()
    assert not any(s.error for s in sessions), [s.error for s in sessions]

    conn = pg.connect()
    cur = conn.cursor()
    finish_prepared(cur)
    cur.execute("SELECT pg_current_wal_insert_lsn()")
    lsn = lsn_int(cur.fetchone()[0])
    cur.execute("INSERT INTO s_marker VALUES (1)")
    for tap in taps:
        wait_until("the suite runs again", tap.suite.is_up, 120, 0.2)
        tap.wait_lsn(lsn, 300)
    changes = [check(tap, cur) for tap in taps]
    done = {k: sum(s.done[k] for s in sessions) for k in sessions[0].done}
    streamed = taps[1].suite.stat("walstreamd", "wal_transactions_streamed")
    report(f"WAL storm: seed {SEED}, {SECONDS} s, modes {modes}, transactions {done}, changes {changes},"
           f" disturbed {counts}, streamed since the last start {streamed}")
    assert done["commit"] > SECONDS and counts.get("walstreamd", 0) > SECONDS // 10
    conn.close()
    for tap in taps:
        tap.suite.close()
        tap.close()
