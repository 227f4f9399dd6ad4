# SPDX-License-Identifier: PostgreSQL
"""
The examples as a user builds them, from an installed tree with nothing but pkg-config's flags, each
run against a real server; and what the installed library shows to the outside.
"""
import glob
import os
import re
import signal
import subprocess
import threading
import time

import pytest

from suite import Postgres, is_sanitized, wait_until

STAGE = os.environ["HOWDAH_STAGE"]
LIB = os.environ["HOWDAH_LIB"]
EXAMPLES = os.environ["HOWDAH_DOC"] + "/examples"


def pkg_config(*args):
    """The tree is staged below another root, which pkg-config puts in front of what it says."""
    env = dict(os.environ, PKG_CONFIG_PATH=f"{LIB}/pkgconfig", PKG_CONFIG_SYSROOT_DIR=STAGE,
               PKG_CONFIG_ALLOW_SYSTEM_CFLAGS="1", PKG_CONFIG_ALLOW_SYSTEM_LIBS="1")
    return subprocess.check_output(["pkg-config", *args, "pgwalstream"], env=env,
                                   text=True).split()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """name -> program, all of them built."""
    if is_sanitized(f"{LIB}/libpgwalstream.so"):
        pytest.skip("a plain program cannot use a library with AddressSanitizer")
    out = tmp_path_factory.mktemp("examples")
    flags = pkg_config("--cflags", "--libs")
    assert flags, "pkg-config says nothing"
    names = sorted(f[:-2] for f in os.listdir(EXAMPLES) if f.endswith(".c"))
    for name in names:
        subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-O1", "-o", f"{out}/{name}",
                        f"{EXAMPLES}/{name}.c", *flags], check=True)
    return {name: f"{out}/{name}" for name in names}


@pytest.fixture(scope="module")
def server():
    p = Postgres(settings="logical_decoding_work_mem = 64kB")
    conn = p.connect("postgres")
    conn.cursor().execute("CREATE DATABASE howdah")
    conn.close()
    yield p
    p.close()


class Table:
    """A table with a publication and a slot, all of one name, and an SQL session."""

    def __init__(self, server, name, slot=True):
        self.name = name
        self.conninfo = server.conninfo()
        self.conn = server.connect()
        self.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, note text)")
        self.sql(f"CREATE PUBLICATION {name} FOR TABLE {name}")
        if slot:
            self.sql(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")

    def sql(self, text):
        cur = self.conn.cursor()
        cur.execute(text)
        return cur.fetchone()[0] if cur.description else None

    def args(self):
        return [self.conninfo, self.name, self.name]

    def confirmed(self, lsn):
        """What the slot may forget: a walsender that has just ended may write it a moment later."""
        wait_until(f"the slot stands at {lsn}", lambda: self.sql(
            f"SELECT confirmed_flush_lsn >= '{lsn}' FROM pg_replication_slots"
            f" WHERE slot_name = '{self.name}'"))


class Program:
    """A running example, its lines collected."""

    def __init__(self, path, *args):
        self.lines = []
        self.errors = []
        self.process = subprocess.Popen(
            [path, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=dict(os.environ, LD_LIBRARY_PATH=LIB))
        self.threads = [threading.Thread(target=self._read, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.lines),
                                     (self.process.stderr, self.errors))]
        for t in self.threads:
            t.start()

    @staticmethod
    def _read(pipe, lines):
        for line in pipe:
            lines.append(line.rstrip("\n"))

    def wait_line(self, start):
        wait_until(f"a line {start!r} in {self.lines[-5:]} {self.errors[-5:]}",
                   lambda: [x for x in self.lines if x.startswith(start)], 60)

    def wait(self, timeout=60):
        code = self.process.wait(timeout)
        for t in self.threads:
            t.join(10)
        self.process.stdin.close()
        return code

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.wait()


def without_numbers(lines):
    return [re.sub(r"(xid|at) \S+", r"\1 _", line) for line in lines]


def test_basic(built, server):
    t = Table(server, "basic", slot=False)
    p = Program(built["basic"], *t.args())
    wait_until("the slot is made", lambda: "slot basic is made" in p.errors, 60)
    t.sql("INSERT INTO basic VALUES (1, 'one'), (2, NULL)")
    t.sql("UPDATE basic SET id = 3 WHERE id = 2")
    t.sql("DELETE FROM basic WHERE id = 1")
    t.sql("SELECT pg_logical_emit_message(true, 'p', 'hello')")
    t.sql("TRUNCATE basic")
    p.wait_line("TRUNCATE")
    wait_until("five commits", lambda: sum(x.startswith("COMMIT") for x in p.lines) == 5)
    assert p.end() == 0, p.errors
    assert [x for x in without_numbers(p.lines) if x not in ("BEGIN xid _", "COMMIT xid _ at _")] == [
        "INSERT public.basic new id='1' note='one'",
        "INSERT public.basic new id='2' note=null",
        "UPDATE public.basic old id='2' new id='3' note=null",
        "DELETE public.basic old id='1'",
        "MESSAGE p: hello",
        "TRUNCATE of 1 tables",
    ]
    # What was confirmed does not come again; the stop LSN ends the program.
    t.sql("INSERT INTO basic VALUES (9, 'later')")
    p = Program(built["basic"], *t.args(), t.sql("SELECT pg_current_wal_lsn()"))
    assert p.wait() == 0, p.errors
    assert without_numbers(p.lines) == [
        "BEGIN xid _", "INSERT public.basic new id='9' note='later'", "COMMIT xid _ at _"]
    assert not p.errors


def test_event_loop(built, server):
    t = Table(server, "event_loop")
    p = Program(built["event_loop"], *t.args())
    t.sql("INSERT INTO event_loop SELECT g, 'x' FROM generate_series(1, 3000) g")
    p.wait_line("COMMIT")
    assert sum(x.startswith("INSERT") for x in p.lines) == 3000
    wait_until("its own timer", lambda: any(x.startswith("idle") for x in p.errors))
    for word, answer in (("position", "POSITION server "), ("what", "? what")):
        p.process.stdin.write(word + "\n")
        p.process.stdin.flush()
        p.wait_line(answer)
    p.process.stdin.write("quit\n")
    p.process.stdin.flush()
    assert p.wait() == 0, p.errors


def rows_of(journal):
    """Whole transactions of the journal: [(xid, [(subxid, ordinal, text)])]."""
    done, rows = [], []
    for line in open(journal):
        words = line.rstrip("\n").split(" ", 4)
        if words[0] == "COMMIT":
            assert all(r[0] == int(words[1]) for r in rows)
            done.append((int(words[1]), [r[1:] for r in rows]))
            rows = []
        else:
            rows.append((int(words[0]), int(words[1]), int(words[2]), words[4]))
    assert not rows
    return done


def large_transaction(t, first_id):
    """102 and 900 rows that stay, 500 that do not; its xid."""
    cur = t.conn.cursor()
    cur.execute("BEGIN")
    cur.execute(f"INSERT INTO {t.name} SELECT g, repeat('a', 100)"
                f" FROM generate_series({first_id}, {first_id} + 899) g")
    cur.execute("SELECT txid_current()")
    xid = cur.fetchone()[0]
    cur.execute("SAVEPOINT a")
    cur.execute(f"INSERT INTO {t.name} SELECT g, repeat('b', 100)"
                f" FROM generate_series({first_id} + 900, {first_id} + 1399) g")
    cur.execute("ROLLBACK TO a")
    cur.execute(f"INSERT INTO {t.name} SELECT g, 'c'"
                f" FROM generate_series({first_id} + 2000, {first_id} + 2101) g")
    cur.execute("COMMIT")
    return xid


def test_safe_transactions(built, server, tmp_path):
    t = Table(server, "safe")
    journal = tmp_path / "journal"
    xids = []
    done = threading.Event()

    def write():
        for i in range(30):
            xids.append(large_transaction(t, i * 10000))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    kills = 0
    while not done.is_set() or kills < 5:
        p = Program(built["safe_transactions"], *t.args(), journal)
        before = journal.stat().st_size if journal.exists() else 0
        # Wherever it stands: in the middle of a transaction, mostly.
        wait_until("the journal grows",
                   lambda: p.process.poll() is not None or done.is_set() or
                   (journal.exists() and journal.stat().st_size > before + 100000), 60)
        assert p.process.poll() is None, p.errors
        time.sleep(kills % 3 * 0.01)  # another place each time
        p.end(signal.SIGKILL)
        kills += 1
    writer.join()
    p = Program(built["safe_transactions"], *t.args(), journal)
    wait_until("everything is confirmed", lambda: p.process.poll() is not None or t.sql(
        "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 1000 FROM pg_replication_slots"
        " WHERE slot_name = 'safe'") and open(journal).read().count("\nCOMMIT ") == 30, 60)
    assert p.end() == 0, p.errors
    got = rows_of(journal)
    assert [xid for xid, _ in got] == xids
    for i, (xid, rows) in enumerate(got):
        assert [r[1] for r in rows] == list(range(1, 1003))
        ids = [int(re.search(r"id='(\d+)'", r[2])[1]) - i * 10000 for r in rows]
        assert ids == list(range(900)) + list(range(2000, 2102))
        assert all(r[0] == xid for r in rows[:900])
        # Streamed: the sub-transaction after the savepoint has a number of its own.
        assert len({r[0] for r in rows[900:]}) == 1 and rows[900][0] > xid


def test_safe_transactions_of_any_value(built, server, tmp_path):
    """What stands in a row is no line of the journal: half of its transaction would count as whole."""
    t = Table(server, "forged")
    journal = tmp_path / "journal"
    t.sql(r"INSERT INTO forged VALUES (1, E'a\nCOMMIT 9 FFFFFFFF/0 1 1\nb\\c''d')")
    p = Program(built["safe_transactions"], *t.args(), journal)
    wait_until("it is in the journal", lambda: journal.exists() and
               "\nCOMMIT" in journal.read_text(), 60)
    assert p.end() == 0, p.errors
    lines = journal.read_text().splitlines()
    assert len(lines) == 2 and lines[1].startswith("COMMIT "), lines
    assert lines[0].endswith(r"note='a\nCOMMIT 9 FFFFFFFF/0 1 1\nb\\c\'d'"), lines


def test_safe_transactions_of_another_cluster(built, server, tmp_path):
    t = Table(server, "safe_too")
    journal = tmp_path / "journal"
    journal.write_text("COMMIT 1 0/10 1234567890 1\nhalf of a li")
    p = Program(built["safe_transactions"], *t.args(), journal)
    assert p.wait() == 1
    assert any("system identifier" in x for x in p.errors), p.errors
    assert journal.read_text() == "COMMIT 1 0/10 1234567890 1\n"


def test_rate_limited(built, server):
    t = Table(server, "rate")
    # Shorter than the pause between two changes.
    t.sql("ALTER SYSTEM SET wal_sender_timeout = '700ms'")
    t.sql("SELECT pg_reload_conf()")
    t.sql("INSERT INTO rate SELECT g FROM generate_series(1, 5) g")
    stop = t.sql("SELECT pg_current_wal_lsn()")
    begun = time.monotonic()
    p = Program(built["rate_limited"], *t.args(), 1, stop)
    assert p.wait() == 0, p.errors
    took = time.monotonic() - begun
    t.sql("ALTER SYSTEM RESET wal_sender_timeout")
    t.sql("SELECT pg_reload_conf()")
    assert without_numbers(p.lines) == ["BEGIN xid _"] + [
        f"INSERT public.rate new id='{i}' note=null" for i in range(1, 6)] + ["COMMIT xid _ at _"]
    assert took > 3.9, "four pauses of a second"
    assert "terminating walsender" not in open(f"{server.root}/log").read()


def test_threads(built, server):
    t = Table(server, "threads")
    for i in range(20):
        t.sql(f"INSERT INTO threads SELECT g, 'x' FROM generate_series({i * 100}, {i * 100 + 99}) g")
    got = []
    for n in (15, 5):
        p = Program(built["threads"], *t.args(), n)
        assert p.wait() == 0, p.errors
        commits = [x.split()[-1] for x in p.lines if x.startswith("COMMIT")]
        assert len(commits) == n
        # Confirmed by the other thread, and told to the server as the program ended.
        t.confirmed(commits[-1])
        got += p.lines
    ids = [int(re.search(r"id='(\d+)'", x)[1]) for x in got if x.startswith("INSERT")]
    assert ids == list(range(2000))
    p = Program(built["threads"], *t.args())
    t.sql("INSERT INTO threads VALUES (5000, 'x')")
    p.wait_line("COMMIT")
    assert p.end() == 0, p.errors


def test_decode_file(built, server, tmp_path):
    t = Table(server, "decoded")
    t.sql("INSERT INTO decoded VALUES (1, 'one')")
    large_transaction(t, 10)

    def capture(name, version, *options):
        with open(tmp_path / name, "w") as f:
            more = "".join(f", '{o}'" for o in options)
            t.conn.cursor().copy_expert(
                "COPY (SELECT lsn, xid, data FROM pg_logical_slot_peek_binary_changes('decoded',"
                f" NULL, NULL, 'proto_version', '{version}', 'publication_names', 'decoded'{more}))"
                " TO STDOUT", f)
        p = Program(built["decode_file"], tmp_path / name)
        assert p.wait() == 0, p.errors
        return without_numbers(p.lines)

    plain = capture("plain", 1)
    assert plain[:5] == ["BEGIN xid _", "RELATION public.decoded",
                         "INSERT public.decoded new id='1' note='one'", "COMMIT xid _ at _",
                         "BEGIN xid _"]
    assert sum(x.startswith("INSERT") for x in plain) == 1003
    streamed = capture("streamed", 2, "streaming", "on")
    assert streamed.count("STREAM STOP") > 1
    assert streamed[-1] == "STREAM COMMIT xid _"
    assert sum(bool(re.match(r"\[\d+\] INSERT", x)) for x in streamed) >= 1002
    (tmp_path / "bad").write_text("0/0\t1\t\\\\x49ff\n")
    p = Program(built["decode_file"], tmp_path / "bad")
    assert p.wait() == 1
    assert p.errors[0].startswith("line 1: ")


def test_exported_symbols():
    """The header's functions, all of them, with their version and a page; nothing else."""
    header = open(f"{pkg_config('--variable=includedir')[0]}/pgwalstream.h").read()
    declared = set(re.findall(r"^PGWS_API\s[^;(]*?\b(pgws_\w+)\(", header, re.M))
    assert len(declared) > 60
    out = subprocess.check_output(["nm", "-D", "--defined-only", "--with-symbol-versions",
                                   f"{LIB}/libpgwalstream.so"], text=True)
    pages = ""
    for page in glob.glob(os.environ["HOWDAH_SRCDIR"] + "/doc/*.3"):
        pages += re.search(r"^\.SH NAME\n(.*?)\\-", open(page).read(), re.M | re.S)[1]
    assert declared <= set(re.findall(r"\w+", pages)), "each has a manual page"
    symbols = {line.split()[-1] for line in out.splitlines() if line.split()[-2] != "A"}
    assert symbols == {f"{name}@@PGWS_0.1" for name in declared}


def test_header_alone(tmp_path):
    """The header needs no other one before it, in C and in C++."""
    for compiler, name in (("cc", "x.c"), ("c++", "x.cc")):
        (tmp_path / name).write_text("#include <pgwalstream.h>\n")
        subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                        *pkg_config("--cflags"), f"{tmp_path}/{name}"], check=True)
