# SPDX-License-Identifier: PostgreSQL
"""
pgctl bench: that it ends with every row, that errors say what to do, and that nothing is left
behind. How fast anything is, is no test's business: sizes are tiny, figures only have to be there.
"""
import glob
import json
import os
import shutil
import signal
import subprocess

import pytest

from suite import process_alive, processes_naming, short_dir, wait_until

PGCTL = f"{os.environ['HOWDAH_BIN']}/pgctl"
KEYS = {"scenario", "transport", "reader", "events_per_s", "cpu_us_per_event",
        "walsender_cpu_us_per_event", "rss_mb"}
FIGURES = KEYS - {"scenario", "transport", "reader"}
TRANSPORTS = ("tcp", "tls", "unix")
READERS = ("walstreamd", "pg_recvlogical", "libpq")
OK, FAILED, USAGE = 0, 1, 2
LIMIT_S = 300


def processes_below(path):
    """Pids that name the folder, or stand in it: workers do not name it."""
    pids = {pid for pid, _ in processes_naming(path)}
    for link in glob.glob("/proc/[0-9]*/cwd"):
        pid = int(link.split("/")[2])
        try:
            if os.readlink(link).startswith(path) and process_alive(pid):
                pids.add(pid)
        except OSError:
            continue
    return pids


@pytest.fixture
def tmpdir_of_bench():
    """A TMPDIR; at the end nothing is in it and nobody uses it."""
    path = short_dir("hwb.")
    yield path
    try:
        wait_until("no process is left", lambda: not processes_below(path), 20)
        assert os.listdir(path) == []
    finally:
        for pid in processes_below(path):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)


def environment(tmpdir, **more):
    # What a user's environment may say about another server must not matter.
    return {**os.environ, "TMPDIR": tmpdir, "PGHOST": "/nowhere", "PGPORT": "1", "PGSSLMODE": "verify-full",
            **more}


def run(tmpdir, *args, **more):
    return subprocess.run([PGCTL, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment(tmpdir, **more), timeout=LIMIT_S)


def rows_of(done):
    assert done.returncode == OK, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def start(tmpdir, *args):
    """pgctl bench in the background, up to where its server and what it measures are running."""
    log = open(f"{tmpdir}/log", "w+")
    process = subprocess.Popen([PGCTL, *args], stdout=log, stderr=log, env=environment(tmpdir))
    os.unlink(f"{tmpdir}/log")

    def there():
        assert process.poll() is None, os.pread(log.fileno(), 4000, 0)
        lines = " ".join(line for _, line in processes_naming(f"{tmpdir}/howdah-bench."))
        text = os.pread(log.fileno(), 100000, 0)
        return "/postgres" in lines and ("howdahd" in lines or b"one after the other" in text)
    wait_until("the bench runs its server, and measures", there, 120)
    return process, log


def check_wal_row(row):
    assert KEYS <= set(row)
    for key in FIGURES:
        assert row[key] > 0, row
    assert row["rss_mb"] < 4096 and row["cpu_us_per_event"] < 1e6


def test_wal(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "-j", "bench", "wal", "--events", "8000", "--rounds", "2")
    everything = rows_of(done)
    assert all(KEYS <= set(r) for r in everything)
    rows = [r for r in everything if r["scenario"] == "baseline"]
    assert {(r["transport"], r["reader"]) for r in rows} == {(t, r) for t in TRANSPORTS for r in READERS}
    assert len(rows) == len(TRANSPORTS) * len(READERS)
    for row in rows:
        check_wal_row(row)
        assert set(row) == KEYS
    latencies = [r for r in everything if r["scenario"] == "idle-latency"]
    assert {(r["transport"], r["reader"]) for r in latencies} == {
        (t, r) for t in TRANSPORTS for r in ("walstreamd", "libpq")}
    for row in latencies:
        assert 0 < row["latency_p50_us"] <= row["latency_p99_us"] < 20e6
        if row["reader"] == "walstreamd":
            # Each insert comes to the ring's consumer before it comes to the subscriber.
            assert row["latency_p50_us"] <= row["subscriber_p50_us"] <= row["subscriber_p99_us"] < 20e6
            assert row["latency_p99_us"] <= row["subscriber_p99_us"]
        else:
            assert row["subscriber_p50_us"] is None and row["subscriber_p99_us"] is None
        assert all(row[key] is None for key in FIGURES)
    large = [r for r in everything if r["scenario"] == "large-transaction"]
    assert len(large) == 1 and large[0]["reader"] == "walstreamd" and large[0]["rss_mb"] > 0
    assert large[0]["cpu_us_per_event"] > 0 and large[0]["events_per_s"] is None
    # Standard error is JSON lines, too: what is being done.
    assert all("progress" in json.loads(line) for line in done.stderr.splitlines())


def test_wal_every_scenario(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "-j", "bench", "wal", "--all", "--events", "1000", "--rounds", "1",
               "--transport", "unix")
    rows = [r for r in rows_of(done) if r["events_per_s"] is not None]
    scenarios = {r["scenario"] for r in rows}
    assert {"baseline", "batch-100", "batch-5000", "4-writers", "wide-20", "payload-2k", "mixed",
            "stress-16"} <= scenarios
    for scenario in ("mixed", "wide-20", "stress-16"):
        assert {r["reader"] for r in rows if r["scenario"] == scenario} == set(READERS)
    for row in rows:
        check_wal_row(row)
        assert row["transport"] == "unix"


def test_wal_for_people(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "bench", "wal", "--events", "8000", "--rounds", "1", "--transport", "tcp")
    assert done.returncode == OK, done.stderr
    assert "cpu_us_per_event" in done.stdout and "verdict" in done.stdout
    assert "of pg_recvlogical's" in done.stdout
    assert "round 1 of 1" in done.stderr


def test_pipeline(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "-j", "bench", "pipeline", "--delay", "20", "--rounds", "5", "--clients", "50")
    rows = rows_of(done)
    assert [(r["method"], r["clients"]) for r in rows] == [
        ("transaction", 1), ("pipeline", 1), ("batch", 1), ("batch", 50)]
    for row, trips in zip(rows, (8, 2, 2, 2)):
        assert set(row) == {"method", "clients", "ms_per_transfer", "one_way_trips", "transfers_per_s"}
        # No bytes overtake the proxy: that many trips it takes at least, on whatever machine.
        assert row["one_way_trips"] >= trips - 0.1 and row["transfers_per_s"] > 0
        assert row["ms_per_transfer"] >= 20 * trips - 2


def test_watch(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "-j", "bench", "watch", "--seconds", "1", "--rounds", "1", "--keys", "500",
               "--hold", "1")
    rows = rows_of(done)
    keys = {"op", "clients", "server", "per_s", "p50_ms", "p99_ms"}
    calls = [r for r in rows if "bytes" not in r]
    assert {(r["op"], r["clients"], r["server"]) for r in calls} == {
        (op, n, server) for op, n in (("put", 1), ("put", 100), ("put", 1000), ("range-l", 1), ("range-l", 100),
                                      ("range-s", 100), ("watch", 1000), ("put-to-event", 1))
        for server in ("watchd", "etcd")} | {
        ("put-to-event-nodes", 1, "watchd")} | {
        (op, 100, server) for op in ("put-before-snapshot", "put-held-snapshot") for server in ("watchd", "etcd")}
    for row in calls:
        assert set(row) == keys and row["per_s"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"], row
    sizes = {(r["op"], r["server"]): r["bytes"] for r in rows if "bytes" in r}
    assert set(sizes) == {("memory-per-key", "watchd"), ("memory-per-key", "etcd"), ("wal-per-put", "watchd"),
                          ("memory-per-watcher", "watchd"), ("memory-per-watcher", "etcd")}
    assert sizes["wal-per-put", "watchd"] > 300  # what a put holds


def test_watch_only(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "-j", "bench", "watch", "--only", "wal,event", "--keys", "500")
    assert {(r["op"], r["server"]) for r in rows_of(done)} == {
        ("put-to-event", "watchd"), ("put-to-event", "etcd"), ("put-to-event-nodes", "watchd"), ("wal-per-put", "watchd")}
    done = run(tmpdir_of_bench, "bench", "watch", "--only", "put,pigeon")
    assert done.returncode == USAGE and '"pigeon"' in done.stderr and "memory, put, range" in done.stderr


def test_watch_without_etcd(tmpdir_of_bench):
    done = run(tmpdir_of_bench, "bench", "watch", PATH="/nowhere")
    assert done.returncode == FAILED and "etcd-server" in done.stderr


@pytest.mark.parametrize("command", ["wal", "watch", "pipeline"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmpdir_of_bench, how, command):
    args = {"wal": ("--transport", "tcp"), "watch": ("--keys", "5000"), "pipeline": ("--delay", "100")}[command]
    process, log = start(tmpdir_of_bench, "bench", command, "--rounds", "50", *args)
    process.send_signal(how)
    assert process.wait(60) == FAILED
    assert b"what it had made is gone" in os.pread(log.fileno(), 100000, 0)
    log.close()
    # The fixture looks for what is left.


def test_killed(tmpdir_of_bench):
    """SIGKILL of pgctl: its processes go with it; the folder is all that stays."""
    process, log = start(tmpdir_of_bench, "bench", "wal", "--rounds", "50", "--transport", "tcp")
    process.kill()
    process.wait(60)
    log.close()
    wait_until("no process is left", lambda: not processes_below(tmpdir_of_bench), 60)
    for name in os.listdir(tmpdir_of_bench):
        shutil.rmtree(f"{tmpdir_of_bench}/{name}")


def test_errors(tmpdir_of_bench):
    for args, text in (
            (("--transport", "pigeon"), "tcp, tls, unix"),
            (("--events", "0"), "from 1 to"),
            (("--rounds", "nine"), "is a number")):
        done = run(tmpdir_of_bench, "bench", "wal", *args)
        assert done.returncode == USAGE and text in done.stderr, done.stderr
    for args, text in ((("--delay", "0"), "from 1 to"), (("--clients", "-1"), "from 1 to")):
        done = run(tmpdir_of_bench, "bench", "pipeline", *args)
        assert done.returncode == USAGE and text in done.stderr, done.stderr
    done = run(tmpdir_of_bench, "bench", "wal", "--bindir", tmpdir_of_bench)
    assert done.returncode == FAILED and "initdb" in done.stderr
    done = run("/nowhere", "bench", "wal")
    assert done.returncode == FAILED and "TMPDIR" in done.stderr
    done = run("/tmp/" + 60 * "x", "bench", "wal")
    assert done.returncode == FAILED and "TMPDIR" in done.stderr


def test_no_room(tmpdir_of_bench):
    done = run("/proc", "bench", "wal")  # a file system that never has any
    assert done.returncode == FAILED and "MB free" in done.stderr and "--events" in done.stderr


def test_server_that_does_not_start(tmpdir_of_bench):
    """A bindir whose postgres fails: its own words, and nothing left."""
    bindir = short_dir("hwbin.")
    try:
        for name, text in (("initdb", "mkdir -p \"$2\""), ("postgres", "echo no luck today; exit 1"),
                           ("pg_recvlogical", "exit 1")):
            with open(f"{bindir}/{name}", "w") as f:
                f.write(f"#!/bin/sh\n{text}\n")
            os.chmod(f"{bindir}/{name}", 0o755)
        done = run(tmpdir_of_bench, "bench", "wal", "--bindir", bindir)
        assert done.returncode == FAILED and "no luck today" in done.stderr and "--bindir" in done.stderr
    finally:
        shutil.rmtree(bindir)
