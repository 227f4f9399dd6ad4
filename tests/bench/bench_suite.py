# SPDX-License-Identifier: PostgreSQL
"""
`make bench`: the figures of the whole suite, each the median of HOWDAH_BENCH_RUNS (3) runs of
HOWDAH_BENCH_SECONDS (5) seconds. Where Mosquitto is installed its figures for the same load stand beside
ours, interleaved; note that its PUBACK promises nothing about the disk.
"""
import json
import os
import shutil
import statistics
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "system"))

from suite import Suite, free_port, wait_until  # noqa: E402

RUNS = int(os.environ.get("HOWDAH_BENCH_RUNS", 3))
SECONDS = os.environ.get("HOWDAH_BENCH_SECONDS", "5")
BENCH = f"{os.environ['HOWDAH_BUILDDIR']}/tests/bench/bench_mqtt"


def bench(*args):
    done = subprocess.run([BENCH, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def median(runs, key):
    return statistics.median(r[key] for r in runs)


def mosquitto():
    """A Mosquitto on a port of its own, or None."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        return None, 0
    port = free_port()
    process = subprocess.Popen([program, "-p", str(port)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    wait_until("mosquitto listens", lambda: subprocess.run(
        ["mosquitto_pub", "-p", str(port), "-t", "x", "-m", "x"], stderr=subprocess.DEVNULL).returncode == 0)
    return process, port


def report(name, **figures):
    print(json.dumps({"figure": name, **figures}), flush=True)


def test_figures():
    suite = Suite()
    peer, peer_port = mosquitto()
    print()
    try:
        suite.sql("CREATE TABLE bench (id bigint, payload text)")
        suite.sql("ALTER TABLE bench REPLICA IDENTITY FULL")
        suite.sql("SELECT howdah_mqtt.publish_table('bench'::regclass, 'bench/rows')")
        conninfo = f"host={suite.run_dir}/postgres user=howdah dbname=howdah"
        port = suite.mqtt_port
        for qos in 0, 1:
            runs = [bench("rows", conninfo, port, SECONDS, qos) for _ in range(RUNS)]
            report("rows per second, INSERT to subscriber", qos=qos, rows_per_s=median(runs, "rows_per_s"))
        for rate in 0, 10000:
            runs = [bench("latency", conninfo, port, SECONDS, rate) for _ in range(RUNS)]
            report("commit to subscriber", rate=rate,
                   **{k: median(runs, k) for k in runs[0] if k.endswith("_ms") or k.startswith("ach")})
        for publishers in 1, 10:
            ours, theirs = [], []
            for _ in range(RUNS):
                ours.append(bench("publish", port, SECONDS, publishers, 100))
                if peer:
                    theirs.append(bench("publish", peer_port, SECONDS, publishers, 100))
            report("QoS 1 publishes per second", publishers=publishers, window=100,
                   brokerd=median(ours, "publishes_per_s"),
                   mosquitto_in_memory=median(theirs, "publishes_per_s") if peer else None)
        ours = bench("idle", port, suite.pid("brokerd"), 5000)["bytes_per_connection"]
        theirs = bench("idle", peer_port, peer.pid, 900)["bytes_per_connection"] if peer else None
        report("bytes per idle connection", brokerd=ours, mosquitto=theirs)
    finally:
        if peer:
            peer.kill()
            peer.wait()
        suite.close()
