# SPDX-License-Identifier: PostgreSQL
"""
Values up to PostgreSQL's own limit. They want ten gigabytes of memory and a minute, so they run in
check-long only (HOWDAH_LARGE_VALUES=1).
"""
import math
import os
import subprocess
import time

import psycopg2
import pytest

from suite import external, wait_until

pytestmark = pytest.mark.skipif("HOWDAH_LARGE_VALUES" not in os.environ, reason="HOWDAH_LARGE_VALUES is not set")

PATTERN = b"0123456789abcdef"
VALUE_BYTES = 900_000_000 // len(PATTERN) * len(PATTERN)
INSERT = f"INSERT INTO big VALUES (%s, repeat('{PATTERN.decode()}', {VALUE_BYTES // len(PATTERN)}))"


@pytest.fixture
def source(make_suite, make_postgres):
    pg, suite = external(make_suite, make_postgres)
    conn = pg.connect()
    cur = conn.cursor()
    cur.execute("CREATE TABLE big (id int PRIMARY KEY, a text, b text)")
    cur.execute("CREATE TABLE small (id int PRIMARY KEY)")
    cur.execute("ALTER PUBLICATION howdah ADD TABLE big")
    cur.execute("SELECT howdah_mqtt.publish_table('small'::regclass, 'small/{id}')")
    yield suite, cur
    conn.close()


def rss_mb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024


def value_of(stream):
    """How many bytes of the pattern the first string of it in the stream has; fails on any other byte."""
    data = b""
    while PATTERN not in data:
        more = stream.read1(1 << 16)
        assert more, data[:1000]
        data += more
    data = data[data.index(PATTERN):]
    n = 0
    expected = PATTERN * ((1 << 20) // len(PATTERN) + 2)
    while True:
        at = n % len(PATTERN)
        if data != expected[at:at + len(data)]:
            end = next(i for i, c in enumerate(data) if c != expected[at + i])
            assert data[end:end + 1] == b'"'
            return n + end
        n += len(data)
        data = stream.read1(1 << 20)
        assert data, f"ended after {n} bytes"


def test_value_of_900_mb(source):
    """It passes the ring in pieces, wal tail shows all of it, and what comes behind it arrives."""
    suite, cur = source
    sub = suite.subscribe("small/#")
    tail = subprocess.Popen(suite.pgctl_command("-j", "wal", "tail", "--table", "big"), stdout=subprocess.PIPE)
    try:
        wait_until("tail streams", lambda: cur.execute(
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") or cur.fetchone()[0] == 2)
        cur.execute(INSERT, (1,))
        cur.execute("INSERT INTO small VALUES (1)")
        assert value_of(tail.stdout) == VALUE_BYTES
        sub.wait_count(1, 120)
    finally:
        tail.kill()
        tail.wait()
    cur.execute("INSERT INTO small VALUES (2)")
    sub.wait_count(2)
    assert suite.stat("walstreamd", "wal_streams") == 1
    cur.execute("INSERT INTO small SELECT g FROM generate_series(3, 3000) g")
    sub.wait_count(3000)
    wait_until("the buffers are given back", lambda: rss_mb(suite.pid("walstreamd")) < 300)
    wait_until("the buffers are given back", lambda: rss_mb(suite.pid("brokerd")) < 300)


def test_message_of_1200_mb(source):
    """The server cannot send it. It is not asked all the time, says why, and the slot can be moved past it."""
    suite, cur = source
    sub = suite.subscribe("small/#")
    cur.execute("CREATE TABLE bytes (id int PRIMARY KEY, b bytea)")
    cur.execute("ALTER PUBLICATION howdah ADD TABLE bytes")
    cur.execute("INSERT INTO bytes VALUES (1, convert_to(repeat('x', 600000000), 'UTF8'))")
    cur.execute("SELECT pg_current_wal_lsn()")
    lsn = cur.fetchone()[0]
    began = time.monotonic()
    wait_until("it says so", lambda: "invalid memory alloc request size" in suite.status("walstreamd")["text"])
    time.sleep(30)
    assert suite.stat("walstreamd", "wal_streams") <= 3 + math.log2((time.monotonic() - began) / 0.15)

    def advance():
        try:
            cur.execute("SELECT pg_replication_slot_advance('howdah_test', %s)", (lsn,))
            return True
        except psycopg2.errors.ObjectInUse:
            return False
    wait_until("the slot is moved", advance, 60, 0.05)
    cur.execute("INSERT INTO small VALUES (1)")
    sub.wait_count(1, 60)
