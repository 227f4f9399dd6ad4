# SPDX-License-Identifier: PostgreSQL
"""Into PostgreSQL: a QoS 1 publish is a committed row before its PUBACK."""
import os
import signal
import subprocess
import time

import paho.mqtt.client as mqtt

from suite import wait_until


def test_publish_is_a_row_when_it_is_acknowledged(suite):
    suite.publish("in/a", "hello")
    rows = suite.sql("SELECT topic, convert_from(payload, 'UTF8'), qos FROM howdah_mqtt.message"
                     " WHERE topic = 'in/a'")
    assert rows == [("in/a", "hello", 1)]


def test_publish_reaches_subscribers(suite):
    sub = suite.subscribe("in/b/+")
    suite.publish("in/b/0", "zero", qos=0)
    suite.publish("in/b/1", "one", qos=1)
    suite.publish("in/b/2", "two", qos=1, version="mqttv311")
    got = sorted((m["topic"], m["payload"], m["qos"]) for m in sub.wait_count(3))
    assert got == [("in/b/0", "zero", 0), ("in/b/1", "one", 1), ("in/b/2", "two", 1)]


def test_many_lines_in_order(suite):
    sub = suite.subscribe("in/c")
    lines = "".join(f"{i}\n" for i in range(5000))
    done = subprocess.run(["mosquitto_pub", "-p", str(suite.mqtt_port), "-q", "1", "-t", "in/c", "-l"],
                          input=lines, text=True, timeout=120)
    assert done.returncode == 0
    assert [m["payload"] for m in sub.wait_count(5000)] == [str(i) for i in range(5000)]
    rows = suite.sql("SELECT convert_from(payload, 'UTF8')::int FROM howdah_mqtt.message"
                     " WHERE topic = 'in/c' ORDER BY batch, sub")
    assert [r[0] for r in rows] == list(range(5000))


def test_unsupported_is_refused_by_the_protocol(suite):
    suite.publish("in/d", "x", qos=2, check=False)
    suite.publish("in/d", "x", qos=2, version="mqttv311", check=False, extra=("--quiet",))
    assert suite.sql("SELECT count(*) FROM howdah_mqtt.message WHERE topic = 'in/d'") == [(0,)]


def signalled(pid, how):
    """False: it has ended, as autovacuum's workers do at any time."""
    try:
        os.kill(int(pid), how)
        return True
    except ProcessLookupError:
        return False


def test_no_puback_while_the_database_hangs(suite):
    """PostgreSQL stopped (SIGSTOP): no PUBACK; continued: PUBACK, one row."""
    acked = []
    client = mqtt.Client(client_id="hang", protocol=mqtt.MQTTv311)
    client.on_publish = lambda c, u, mid: acked.append(mid)
    client.connect("127.0.0.1", suite.mqtt_port)
    client.loop_start()
    postmaster = suite.postmaster_pid()
    children = subprocess.run(["pgrep", "-P", str(postmaster)], stdout=subprocess.PIPE,
                              text=True).stdout.split()
    children = [pid for pid in children if signalled(pid, signal.SIGSTOP)]
    try:
        client.publish("in/e", "x", qos=1)
        time.sleep(1)  # what must not happen cannot be waited for
        assert not acked
    finally:
        for pid in children:
            signalled(pid, signal.SIGCONT)
    wait_until("PUBACK", lambda: acked)
    client.loop_stop()
    client.disconnect()
    assert suite.sql("SELECT count(*) FROM howdah_mqtt.message WHERE topic = 'in/e'") == [(1,)]
