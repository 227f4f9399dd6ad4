# SPDX-License-Identifier: PostgreSQL
"""
Many keys: watchd is ready again soon after it was killed; a list of all of them and a compaction of most
of their history leave other clients alone.

HOWDAH_WATCH_KEYS (50,000; by hand a million, on a machine that has nothing else to do) sets their number;
the figures are printed. What is asserted is lenient, because a test machine has other work.
"""
import os
import subprocess
import sys
import threading
import time

import pytest

from etcd import Client, Watchd, api, op
from suite import wait_until

KEYS = int(os.environ.get("HOWDAH_WATCH_KEYS", 50_000))
VALUE = b"v" * 256
TXN_OPS = 128


def name(i):
    return b"/registry/pods/ns/%09d" % i


def put_all(client, first, last):
    """Keys first..last, many in a Txn, some Txns at a time."""
    call, waiting = client.method("Txn"), []
    for i in range(first, last, TXN_OPS):
        puts = [op(api.PutRequest(key=name(k), value=VALUE)) for k in range(i, min(last, i + TXN_OPS))]
        waiting.append(call.future(api.TxnRequest(success=puts)))
        if len(waiting) > 16:
            waiting.pop(0).result()
    for answer in waiting:
        answer.result()


@pytest.fixture(scope="module")
def server():
    watchd = Watchd('quota = "8GB";')
    with_client = Client(watchd.endpoint, timeout=60)
    put_all(with_client, 0, KEYS)
    with_client.close()
    yield watchd
    watchd.close()


def beside(endpoint, what):
    """In a process of its own: one thing again and again until its standard input ends."""
    client, took, over = Client(endpoint, timeout=60), [], threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.is_set() or not took:
        start = time.monotonic()
        if what == "get":
            client.get(name(7), serializable=True)
        else:
            client.put(b"beside", VALUE)
        took.append(time.monotonic() - start)
        time.sleep(0.001)
    client.close()
    took.sort()
    print(*(round(took[int((len(took) - 1) * p)] * 1000, 2) for p in (0.5, 0.99, 1)))


class Beside:
    """Another client, which notes how long its calls take."""

    def __init__(self, server, what):
        self.process = subprocess.Popen([sys.executable, __file__, server.endpoint, what], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self):
        """Median, 99th percentile and longest, in ms."""
        out, _ = self.process.communicate(timeout=90)
        return [float(x) for x in out.split()]


def slow_callbacks(server):
    """What watchd itself says of passes of its loop over 50 ms."""
    return [line for line in server.suite.log_text().splitlines() if "watchd" in line and "[ev.slow]" in line]


def test_ready_again(server):
    start = time.monotonic()
    old = server.suite.kill("watchd")
    wait_until("watchd to be another", lambda: server.suite.pid("watchd") not in (0, old), 30)
    wait_until("watchd to be ready", server.ready, 60)
    took = time.monotonic() - start
    client = Client(server.endpoint)
    assert client.get(b"\0", b"\0", count_only=True).count == KEYS
    client.close()
    print(f"{KEYS} keys: ready {took:.1f} s after SIGKILL")
    assert took < 20


def test_list_all(server):
    quiet = Beside(server, "get")
    time.sleep(2)
    before = quiet.end()
    beside = Beside(server, "get")
    client = Client(server.endpoint, timeout=120)
    start, total, slow = time.monotonic(), 0, len(slow_callbacks(server))
    path = "/etcdserverpb.KV/Range"
    for request in (api.RangeRequest(key=b"\0", range_end=b"\0"),
                    api.RangeRequest(key=b"\0", range_end=b"\0", sort_target="MOD", sort_order="DESCEND")):
        total += len(client.raw(path, request.SerializeToString(), timeout=120))
    took = time.monotonic() - start
    client.close()
    during = beside.end()
    print(f"two lists of {KEYS} keys: {total >> 20} MB in {took:.1f} s; a get beside them: {during} ms, alone {before}")
    assert total > 2 * KEYS * (len(VALUE) + 20)
    print(*slow_callbacks(server)[slow:], sep="\n")
    assert during[1] < 500


def test_compact_while_putting(server):
    client = Client(server.endpoint, timeout=60)
    for _ in range(2):
        put_all(client, 0, KEYS)
    puts = Beside(server, "put")
    time.sleep(3)
    before = puts.end()
    puts = Beside(server, "put")
    revision, slow = client.revision(), len(slow_callbacks(server))
    assert client.call("Compact", revision=revision).header.revision >= revision
    time.sleep(5)
    during = puts.end()
    print(f"{KEYS * 2} old versions compacted: a put beside it {during} ms, before {before}")
    print(*slow_callbacks(server)[slow:], sep="\n")
    assert client.get(b"\0", b"\0", count_only=True).count == KEYS + 1
    assert client.error("Range", key=b"a", revision=revision - 1) == \
        "OUT_OF_RANGE: etcdserver: mvcc: required revision has been compacted"
    client.close()
    assert during[1] < max(4 * before[1], 500)


if __name__ == "__main__":
    beside(*sys.argv[1:])
