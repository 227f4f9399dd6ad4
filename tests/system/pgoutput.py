# SPDX-License-Identifier: PostgreSQL
"""
What the comparisons of the WAL path need: an own small reader of pgoutput messages of protocol 1
(written from the protocol's documentation, independent of the library under test), the file that
tests/helpers/tapd.c writes, and tables rebuilt from changes.
"""
import os
import shutil
import struct
from collections import namedtuple

from suite import Suite, short_dir, wait_until

Record = namedtuple("Record", "commit_lsn end_lsn lsn ordinal relid timeline commit_time data")
UNCHANGED = object()


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 1

    def int(self, n, signed=False):
        self.at += n
        assert self.at <= len(self.data), "message too short"
        return int.from_bytes(self.data[self.at - n:self.at], "big", signed=signed)

    def str(self):
        end = self.data.index(0, self.at)
        text = self.data[self.at:end].decode()
        self.at = end + 1
        return text

    def bytes(self, n):
        self.at += n
        assert self.at <= len(self.data), "message too short"
        return self.data[self.at - n:self.at]

    def tuple(self):
        values = []
        for _ in range(self.int(2)):
            kind = chr(self.int(1))
            values.append({"n": lambda: None, "u": lambda: UNCHANGED,
                           "t": lambda: self.bytes(self.int(4)).decode(),
                           "b": lambda: self.bytes(self.int(4))}[kind]())
        return values


def decode(data):
    """A message as a dictionary; raises on anything that is not exactly one message."""
    r = Reader(data)
    kind = chr(data[0])
    m = {"type": kind}
    if kind == "B":
        m.update(final_lsn=r.int(8), time=r.int(8, True), xid=r.int(4))
    elif kind == "C":
        m.update(flags=r.int(1), commit_lsn=r.int(8), end_lsn=r.int(8), time=r.int(8, True))
    elif kind == "O":
        m.update(lsn=r.int(8), name=r.str())
    elif kind == "Y":
        m.update(oid=r.int(4), schema=r.str(), name=r.str())
    elif kind == "R":
        m.update(relid=r.int(4), schema=r.str(), name=r.str(), identity=chr(r.int(1)), columns=[])
        for _ in range(r.int(2)):
            m["columns"].append((r.int(1), r.str(), r.int(4), r.int(4, True)))
    elif kind in "IUD":
        m.update(relid=r.int(4), old=None, new=None)
        while r.at < len(data):
            which = chr(r.int(1))
            assert which in "NKO"
            m["new" if which == "N" else "old"] = r.tuple()
            if which != "N":
                m["old_kind"] = which
    elif kind == "T":
        n, m["bits"] = r.int(4), r.int(1)
        m["relids"] = [r.int(4) for _ in range(n)]
    elif kind == "M":
        m.update(flags=r.int(1), lsn=r.int(8), prefix=r.str(), content=r.bytes(r.int(4)))
    else:
        raise AssertionError(f"message of type {kind!r}")
    assert r.at == len(data), f"{len(data) - r.at} bytes too many in {data!r}"
    return m


class Tap:
    """A suite whose reader of the ring is tapd: what it writes, and how to start it."""

    def __init__(self, make_suite, postgres, walstreamd="", node="test"):
        libexec = short_dir("hwtap.")
        real = os.environ["HOWDAH_LIBEXEC"]
        for name in os.listdir(real):
            if name != "brokerd":
                os.symlink(f"{real}/{name}", f"{libexec}/{name}")
        shutil.copy(f"{os.environ['HOWDAH_BUILDDIR']}/tests/helpers/tapd", f"{libexec}/brokerd")
        os.chmod(f"{libexec}/brokerd", 0o755)
        self.libexec = libexec
        self.postgres = postgres
        self.suite = make_suite(
            postgres=f'mode = "external"; conninfo = "{postgres.conninfo()}";',
            walstreamd=walstreamd, node=node, start=False, libexec=libexec)
        self.suite.start()
        wait_until("control socket", lambda: self.suite.status())
        self.suite.pgctl("db", "init")
        self.suite.wait_up()

    def records(self):
        """Everything that was read so far, whole lines only."""
        found = []
        try:
            with open(f"{self.suite.state_dir}/tap") as f:
                for line in f:
                    words = line.split()
                    if not line.endswith("\n") or words[0] != "message":
                        continue
                    found.append(Record(*map(int, words[1:8]), bytes.fromhex(words[8])))
        except FileNotFoundError:
            pass
        return found

    def wait_lsn(self, lsn, timeout=60):
        """Until a transaction that ends at or behind lsn was read."""
        path = f"{self.suite.state_dir}/tap"

        def there():
            try:
                with open(path, "rb") as f:
                    f.seek(max(0, os.path.getsize(path) - 200_000))
                    for line in f.read().split(b"\n")[1:-1]:
                        words = line.split()
                        if len(words) > 2 and words[0] == b"message" and int(words[2]) >= lsn:
                            return True
            except FileNotFoundError:
                pass
            return False
        wait_until(f"the ring's reader is at {lsn}", there, timeout, 0.1)

    def close(self):
        shutil.rmtree(self.libexec, ignore_errors=True)


def transactions(records):
    """Records by transaction, in the order of arrival; checks everything that must hold of them."""
    done, now, last_commit = [], None, 0
    for r in records:
        m = decode(r.data)
        if m["type"] == "B":
            assert now is None, "BEGIN inside a transaction"
            assert r.commit_lsn == m["final_lsn"] > last_commit, "commit order"
            now, ordinal, last_commit = [], 0, r.commit_lsn
        assert now is not None, f"{m['type']} outside a transaction"
        assert r.commit_lsn == last_commit
        if m["type"] in "IUDTM":
            ordinal += 1
            assert r.ordinal == ordinal, f"ordinal {r.ordinal}, expected {ordinal}"
        else:
            assert r.ordinal == 0
        now.append((r, m))
        if m["type"] == "C":
            assert r.end_lsn == m["end_lsn"] and m["commit_lsn"] == r.commit_lsn
            done.append(now)
            now = None
        else:
            assert r.end_lsn == 0
    return done


class Tables:
    """Tables rebuilt from changes: name -> {key: row}; a row is a dictionary by column name."""

    def __init__(self, keys):
        self.keys = keys  # name -> columns that tell rows apart
        self.relations = {}
        self.rows = {name: {} for name in keys}

    def _row(self, rel, values):
        return {c[1]: v for c, v in zip(rel["columns"], values)}

    def _key(self, rel, row):
        return tuple(row[k] for k in self.keys[rel["name"]])

    def apply(self, m):
        kind = m["type"]
        if kind == "R":
            self.relations[m["relid"]] = m
        elif kind == "T":
            for relid in m["relids"]:
                self.rows[self.relations[relid]["name"]].clear()
        elif kind in "IUD":
            rel = self.relations[m["relid"]]
            table = self.rows[rel["name"]]
            if kind == "I":
                row = self._row(rel, m["new"])
                assert UNCHANGED not in row.values()
                key = self._key(rel, row)
                assert key not in table, f"{rel['name']} {key} inserted twice"
                table[key] = row
                return
            row = self._row(rel, m["new"]) if kind == "U" else None
            old = self._row(rel, m["old"]) if m["old"] else row
            before = table.pop(self._key(rel, old), None)
            assert before is not None, f"{rel['name']}: {kind} of a row that is not there: {old}"
            if kind == "U":
                for name, value in row.items():
                    if value is UNCHANGED:
                        row[name] = before[name]
                table[self._key(rel, row)] = {**before, **row}


def rows_of(cur, table, keys):
    """The table as the server has it, every value as text."""
    cur.execute("SELECT a.attname FROM pg_attribute a WHERE a.attrelid = %s::regclass"
                " AND a.attnum > 0 AND NOT a.attisdropped", (table,))
    names = [n for n, in cur.fetchall()]
    cur.execute(f"SELECT {', '.join(f'{n}::text' for n in names)} FROM {table}")
    rows = [dict(zip(names, r)) for r in cur.fetchall()]
    return {tuple(r[k] for k in keys): r for r in rows}


def compare(mine, theirs):
    """Differences between a rebuilt table and the server's; columns that are missing are NULL."""
    wrong = []
    for key in sorted(set(mine) | set(theirs)):
        a, b = mine.get(key), theirs.get(key)
        if a is None or b is None:
            wrong.append((key, "missing" if a is None else "too many"))
        elif any(a.get(n) != v for n, v in b.items()):
            wrong.append((key, {n: (a.get(n), v) for n, v in b.items() if a.get(n) != v}))
    return wrong


def lsn_int(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
