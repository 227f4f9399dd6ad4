# SPDX-License-Identifier: PostgreSQL
"""pgctl as a person and as a script uses it: tables, JSON lines, exit codes, messages with a remedy."""
import json
import os
import re
import subprocess

import pytest

from suite import wait_until

OK, FAILED, USAGE, UNREACHABLE, CONFIGURATION = 0, 1, 2, 3, 78


def test_status(suite):
    text = suite.pgctl("status")
    for word in ("walstreamd", "brokerd", "postgres", "UP"):
        assert word in text
    for worker, row in suite.status().items():
        if worker in suite.workers():
            assert row["state"] == "UP" and row["restarts"] == 0 and row["pid"] > 0
            assert row["uptime_s"] >= 0


def test_status_shows_positions(suite):
    row = json.dumps(suite.status("walstreamd"))
    for name in ("published", "acknowledged", "retained"):
        assert name in row


def test_stats(suite):
    everything = suite.rows("stats")
    assert {r["worker"] for r in everything} >= {"walstreamd", "brokerd"}
    for row in everything:
        assert row["name"] and row["help"] and "value" in row
    assert {r["worker"] for r in suite.rows("stats", "brokerd")} == {"brokerd"}


def test_help_names_every_command(suite):
    text = suite.pgctl("help")
    for command in ("status", "stats", "reload", "config check", "worker restart", "log", "db init",
                    "db upgrade", "db status", "node list", "node remove", "mqtt map add",
                    "mqtt map list", "mqtt map remove", "mqtt sessions", "wal lag",
                    "wal tail", "wal slots", "wal slots create", "wal slots alter", "wal slots drop",
                    "ring status", "bench wal", "bench pipeline", "doctor"):
        assert command in text, command
    assert "RELATION" in suite.pgctl("help", "mqtt", "map", "add")


def test_exit_codes(suite, tmp_path):
    assert suite.pgctl_raw("nonsense").returncode == USAGE
    assert suite.pgctl_raw("worker", "restart").returncode == USAGE
    assert suite.pgctl_raw("worker", "restart", "nobody").returncode == FAILED
    gone = subprocess.run([f"{os.environ['HOWDAH_BIN']}/pgctl", "-s", f"{suite.run_dir}/nothing.sock",
                           "status"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert gone.returncode == UNREACHABLE and "start it" in gone.stderr


def test_map_add_list_remove(suite):
    suite.sql("CREATE TABLE m (id int PRIMARY KEY)")
    suite.pgctl("mqtt", "map", "add", "m", "m/{id}", "--qos", "0", "--name", "second")
    row = [r for r in suite.rows("mqtt", "map", "list") if r["name"] == "second"][0]
    assert (row["table"], row["topic"], row["qos"]) == ("m", "m/{id}", 0)
    suite.pgctl("mqtt", "map", "remove", "m", "--name", "second")
    assert not [r for r in suite.rows("mqtt", "map", "list") if r["name"] == "second"]
    bad = suite.pgctl_raw("mqtt", "map", "remove", "m", "--name", "second")
    assert bad.returncode == FAILED and bad.stderr
    suite.sql("CREATE TABLE nokey (id int)")
    bad = suite.pgctl_raw("mqtt", "map", "add", "nokey", "x")
    assert bad.returncode == FAILED and "REPLICA IDENTITY" in bad.stderr


def test_sessions(suite):
    sub = suite.subscribe("a/#", "b/+", client_id="session-test", qos=0)
    row = [r for r in suite.rows("mqtt", "sessions") if r["client_id"] == "session-test"][0]
    assert row["subscriptions"] == 2
    sub.close()
    wait_until("session is gone", lambda: not [
        r for r in suite.rows("mqtt", "sessions") if r["client_id"] == "session-test"])


def test_worker_restart(suite):
    before = suite.status("brokerd")
    suite.pgctl("worker", "restart", "brokerd")
    wait_until("a new brokerd", lambda: suite.status("brokerd").get("pid") not in (None, 0, before["pid"])
               and suite.is_up())


def test_log_level(suite):
    suite.pgctl("log", "debug")
    suite.pgctl("log", "info")
    assert suite.pgctl_raw("log", "loud").returncode in (FAILED, USAGE)


def test_wal_lag_and_ring_status(suite):
    wait_until("brokerd is attached", lambda: any(
        "brokerd" in json.dumps(r) for r in suite.rows("ring", "status")))
    assert "brokerd" in json.dumps(suite.rows("wal", "lag"))


def test_db_status_and_doctor(suite):
    assert all(r["installed"] == r["available"] for r in suite.rows("db", "status"))
    findings = suite.rows("doctor")
    assert findings and not [r for r in findings if r["result"] == "error"], findings
    assert ("encoding", "ok", "the database is in UTF8") in [
        (r["check"], r["result"], r["finding"]) for r in findings]
    suite.sql("CREATE TABLE loses_identity (id int PRIMARY KEY)")
    suite.pgctl("mqtt", "map", "add", "loses_identity", "x/{id}")
    suite.sql("ALTER TABLE loses_identity REPLICA IDENTITY NOTHING")
    done = suite.pgctl_raw("-j", "doctor")
    assert done.returncode == FAILED
    found = [r for r in map(json.loads, done.stdout.splitlines()) if "loses_identity" in json.dumps(r)]
    assert found and "REPLICA IDENTITY" in found[0]["remedy"]
    suite.sql("ALTER TABLE loses_identity REPLICA IDENTITY DEFAULT")
    suite.pgctl("mqtt", "map", "remove", "loses_identity")


def test_a_column_that_is_not_there(suite):
    suite.sql("CREATE TABLE renames (id int PRIMARY KEY, area text)")
    done = suite.pgctl_raw("mqtt", "map", "add", "renames", "r/{aera}/{op}/{id}/{{x}}", "--payload", "{new} {area}")
    assert done.returncode == 0 and "no column aera" in done.stderr and "area:" not in done.stderr
    done = suite.pgctl_raw("mqtt", "map", "add", "renames", "r/{area}/{id}", "--payload", "{new} {area}")
    assert done.returncode == 0 and done.stderr == ""
    assert not [r for r in suite.rows("doctor") if r["check"] == "templates" and r["result"] != "ok"]
    suite.sql("ALTER TABLE renames RENAME area TO region")
    found = [r for r in suite.rows("doctor") if r["check"] == "templates"]
    assert [r["result"] for r in found] == ["warning"] and "{area}" in found[0]["finding"]
    assert "publish_table" in found[0]["remedy"]
    relid = [r["relid"] for r in suite.rows("mqtt", "map", "list") if r["table"] == "renames"][0]
    suite.sql("DROP TABLE renames")
    done = suite.pgctl_raw("mqtt", "map", "remove", "renames")
    assert done.returncode == FAILED and "relid" in done.stderr
    suite.pgctl("mqtt", "map", "remove", str(relid))
    assert not [r for r in suite.rows("mqtt", "map", "list") if r["relid"] == relid]


@pytest.mark.parametrize("flags", [[], ["-j"]])
def test_a_reader_that_has_left_is_not_complained_about(suite, flags):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([f"{os.environ['HOWDAH_BIN']}/pgctl", *flags, "-s", f"{suite.run_dir}/control.sock", "stats"],
                          stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (FAILED, "")


def test_nodes(suite):
    assert [r["name"] for r in suite.rows("node", "list")] == [suite.node]


def test_the_sample_configuration_shows_keys_that_exist(suite, tmp_path):
    with open(os.path.join(os.environ["HOWDAH_SRCDIR"], "etc", "howdah.conf")) as f:
        sample = f.read()
    keys, n = re.subn(r"(?m)^(\s*)#([a-z_]+ = )", r"\1\2", sample)
    assert n > 20
    for text in (sample, keys):
        conf = tmp_path / "howdah.conf"
        conf.write_text(text)
        done = subprocess.run([f"{os.environ['HOWDAH_SBIN']}/howdahd", "-t", "-c", str(conf),
                               "-L", os.environ["HOWDAH_LIBEXEC"]], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0 and done.stdout.endswith(": good\n"), done.stdout


@pytest.mark.parametrize("text, word", [
    ("brokerd = { ack_timeot = \"3s\"; };", "ack_timeout"),
    ("log_level = \"loud\";", "debug"),
    ("walstreamd = { ring_size = \"63MB\"; };", "power of two"),
    ("walstreamd = { ring_size = 64; };", "\"64"),
    ("brokerd = { listeners = ( { url = \"http://127.0.0.1:1\"; } ); };", "mqtt://"),
    ("nonsense = 1;", "nonsense"),
])
def test_config_check(suite, tmp_path, text, word):
    conf = tmp_path / "howdah.conf"
    conf.write_text(f'state_dir = "{suite.state_dir}";\nrun_dir = "{suite.run_dir}";\n{text}\n')
    os.chmod(tmp_path, 0o755)
    done = subprocess.run([f"{os.environ['HOWDAH_SBIN']}/howdahd", "-t", "-c", str(conf),
                           "-L", os.environ["HOWDAH_LIBEXEC"]], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert done.returncode == CONFIGURATION, done.stdout
    assert f"{conf}:3" in done.stdout and word in done.stdout, done.stdout


def test_reload_keeps_the_old_configuration_on_failure(make_suite):
    suite = make_suite()
    good = open(suite.conf).read()
    with open(suite.conf, "a") as f:
        f.write('log_level = "loud";\n')
    done = suite.pgctl_raw("reload")
    assert done.returncode != OK and "log_level" in done.stderr
    assert suite.is_up()
    with open(suite.conf, "w") as f:
        f.write(good + 'log_level = "debug";\n')
    suite.pgctl("reload")
    wait_until("debug lines", lambda: "<7>" in suite.log_text())
    assert suite.is_up() and all(suite.status(w)["restarts"] == 0 for w in suite.workers())
