# SPDX-License-Identifier: PostgreSQL
"""
A real howdahd with workers that misbehave on demand (tests/helpers/fake_worker.c): what it does about
each kind of death, and that `status` says so. No database is needed.
"""
import json
import os
import pwd
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from suite import AS_ROOT, free_port, is_sanitized, process_alive, processes_naming, short_dir, wait_until

USER = "nobody" if AS_ROOT else pwd.getpwuid(os.getuid()).pw_name
UID = pwd.getpwnam(USER).pw_uid
FAKE = os.path.join(os.environ.get("HOWDAH_BUILDDIR", "."), "tests/helpers/fake_worker")
HOWDAHD = os.path.join(os.environ["HOWDAH_SBIN"], "howdahd")


def allow_cores():
    if AS_ROOT:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Howdahd:
    """howdahd with fake workers; control requests go over its socket."""

    def __init__(self, mode="external", deeds=None, start=True, env=None, options=("-f",)):
        self.root = short_dir("hs.")
        os.chmod(self.root, 0o755)
        self.state_dir, self.run_dir = f"{self.root}/state", f"{self.root}/run"
        self.conf = f"{self.root}/howdah.conf"
        self.port = free_port()
        self.libexec = f"{self.root}/libexec"
        os.mkdir(self.libexec)
        os.chmod(self.libexec, 0o755)
        for name in ("postgres", "walstreamd", "brokerd", "watchd"):
            shutil.copy(FAKE, f"{self.libexec}/{name}")
        os.mkdir(self.state_dir, 0o755)
        if AS_ROOT:
            os.chown(self.state_dir, UID, -1)
        for name, deed in (deeds or {}).items():
            self.deed(name, deed)
        self.mode = mode
        self.write_conf()
        self.log_path = f"{self.root}/log"
        open(self.log_path, "w").close()
        self.process = None
        self.env = env or {}
        if start:
            self.start(*options)

    def write_conf(self, brokerd="", walstreamd="", top="", ports=None, mode=None,
                   watchd="enabled = false;"):
        urls = ", ".join(f'{{ url = "mqtt://127.0.0.1:{p}"; }}' for p in ports or [self.port])
        with open(self.conf, "w") as f:
            f.write(f'node = "t"; state_dir = "{self.state_dir}"; run_dir = "{self.run_dir}"; {top}\n'
                    f'user = "{USER}";\npostgres = {{ mode = "{mode or self.mode}"; }};\n'
                    f'brokerd = {{ listeners = ( {urls} ); {brokerd} }};\n'
                    f'walstreamd = {{ {walstreamd} }};\nwatchd = {{ {watchd} }};\n')

    def deed(self, name, deed):
        """What the worker does from its next start on."""
        with open(f"{self.state_dir}/{name}.do.new", "w") as f:
            f.write(deed + "\n")
        os.rename(f"{self.state_dir}/{name}.do.new", f"{self.state_dir}/{name}.do")

    def command(self, *options):
        return [HOWDAHD, "-c", self.conf, "-L", self.libexec, "-D", self.root, *options]

    def start(self, *options, wait=True):
        log = open(self.log_path, "a")
        self.process = subprocess.Popen(self.command(*options), stdout=log, stderr=log,
                                        preexec_fn=allow_cores,
                                        env={**os.environ, "HOWDAH_BRISK": "1", **self.env})
        log.close()
        if wait:
            wait_until("the control socket", lambda: self.process.poll() is not None or self.answers())

    def answers(self):
        try:
            return self.ask("suite.info")[0]
        except (OSError, ValueError):
            return None

    def log(self):
        with open(self.log_path) as f:
            return f.read()

    def ask(self, cmd, timeout=20, **args):
        """Rows, and the error object or None."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(timeout)
            s.connect(f"{self.run_dir}/control.sock")
            s.sendall(json.dumps({"cmd": cmd, "args": args, "id": 1, "v": 1}).encode() + b"\n")
            rows = []
            with s.makefile() as lines:
                for line in lines:
                    reply = json.loads(line)
                    assert reply["id"] == 1
                    if "row" in reply:
                        rows.append(reply["row"])
                    else:
                        return rows, reply.get("error")
        raise ValueError("closed without an end")

    def status(self, worker):
        rows, error = self.ask("status")
        assert error is None
        return {r["worker"]: r for r in rows}.get(worker)

    def wait_state(self, worker, state, timeout=20):
        def reached():
            row = self.status(worker)
            return row if row and row["state"] == state else None
        try:
            return wait_until(f"{worker} is {state}", reached, timeout)
        except AssertionError as e:
            raise AssertionError(f"{e}: {self.status(worker)}\n{self.log()[-3000:]}")

    def wait_up(self):
        return self.wait_state("walstreamd", "UP"), self.wait_state("brokerd", "UP")

    def greet(self):
        """Connects as a client; the pid of the broker that serves it."""
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            s.settimeout(20)
            return int(s.makefile().readline())

    def stop(self, how=signal.SIGTERM, timeout=30):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)

    def close(self):
        try:
            if self.process:
                status = self.stop()
                assert status in (0, 1, 78), f"{status}\n{self.log()[-3000:]}"
            wait_until("no process is left", lambda: not processes_naming(self.root), 5)
            for word in ("AddressSanitizer", "LeakSanitizer", "runtime error:", "mem.leak"):
                assert word not in self.log(), self.log()[-4000:]
        finally:
            for pid, _ in processes_naming(self.root):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def make():
    made = []

    def new(**options):
        made.append(Howdahd(**options))
        return made[-1]
    yield new
    for s in made:
        s.close()


def proc_status(pid):
    with open(f"/proc/{pid}/status") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)


def test_start_status_and_stop(make):
    s = make()
    wal, broker = s.wait_up()
    rows, _ = s.ask("status")
    assert [r["worker"] for r in rows] == ["howdahd", "walstreamd", "brokerd"]
    assert rows[0]["state"] == "UP" and rows[0]["pid"] == s.process.pid
    for row in (wal, broker):
        assert row["restarts"] == 0 and row["deaths"] == 0 and row["last_exit"] == ""
        assert row["text"] == "fake, does well" and row["uptime_s"] < 20
        assert process_alive(row["pid"])
        assert row["fake_position"] == "1/23456789"
    assert wal["generation"] != broker["generation"]
    wait_until("each knows the other", lambda: s.status("brokerd")["fake_peers_up"] == 1
               and s.status("walstreamd")["fake_peers_up"] == 1)
    assert s.greet() == broker["pid"]
    assert s.stop() == 0
    assert not process_alive(wal["pid"]) and not process_alive(broker["pid"])
    assert not os.path.exists(f"{s.run_dir}/control.sock")


def test_relay_carries_body_and_descriptor(make):
    s = make()
    s.wait_up()
    wait_until("the relayed message", lambda: [
        r for r in s.ask("stats", worker="walstreamd")[0]
        if r["name"] == "fake_relays_received" and r["value"] >= 1])
    row = [r for r in s.ask("stats")[0] if r["worker"] == "brokerd" and r["name"] == "fake_position"][0]
    assert row["value"] == "1/23456789" and row["kind"] == "lsn" and row["help"] == "a position"


def test_worker_is_born_clean(make):
    s = make(env={"PGHOST": "elsewhere", "SECRET": "x", "TZ": "UTC", "HOWDAH_TEST": "1"})
    _, broker = s.wait_up()
    pid = broker["pid"]
    st = proc_status(pid)
    assert st["Uid"].split() == [str(UID)] * 4
    assert st["NoNewPrivs"].strip() == "1"
    if UID != 0:
        assert int(st["CapEff"], 16) == int(st["CapPrm"], 16) == int(st["CapInh"], 16) == 0
        assert int(st["CapAmb"], 16) == 0
    assert int(st["SigBlk"], 16) == 0
    assert os.readlink(f"/proc/{pid}/cwd") == s.state_dir
    assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    with open(f"/proc/{pid}/environ") as f:
        names = {e.split("=")[0] for e in f.read().split("\0") if e}
    assert {"PATH", "LANG", "LC_ALL", "HOWDAH_GENERATION", "TZ", "HOWDAH_TEST"} <= names
    assert not names & {"PGHOST", "SECRET", "HOME", "USER"}
    assert os.getpgid(pid) == pid
    # Nothing of the supervisor's leaks: no lock, no control socket, no listener twice.
    inherited = [os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]
    assert not [x for x in inherited if "howdahd.pid" in x]
    with open(f"/proc/{s.process.pid}/net/unix") as f:
        control = [line.split()[6] for line in f if line.rstrip().endswith(f"{s.run_dir}/control.sock")]
    assert control and not [x for x in inherited if x[8:-1] in control]


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_root_is_dropped_for_good(make):
    s = make()
    wal, _ = s.wait_up()
    assert proc_status(s.process.pid)["Uid"].split()[0] == "0"
    st = proc_status(wal["pid"])
    groups = {str(g) for g in os.getgrouplist(USER, pwd.getpwnam(USER).pw_gid)}
    assert set(st["Groups"].split()) <= groups and "0" not in st["Gid"].split()
    assert os.stat(f"{s.run_dir}/control.sock").st_mode & 0o777 == 0o660


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_user_that_is_not_there(make):
    s = make(start=False)
    s.write_conf()
    text = open(s.conf).read().replace(f'user = "{USER}"', 'user = "no_such_user"')
    open(s.conf, "w").write(text)
    s.start("-f", wait=False)
    assert s.process.wait(20) == 78
    assert "no_such_user" in s.log() and "useradd" in s.log()


def test_killed_worker_comes_back(make):
    s = make()
    wal, broker = s.wait_up()
    os.kill(broker["pid"], signal.SIGKILL)
    row = wait_until("it is up again", lambda: (lambda r: r if r["restarts"] == 1 and r["state"] == "UP"
                                                else None)(s.status("brokerd")))
    assert row["pid"] != broker["pid"] and process_alive(row["pid"])
    assert row["generation"] > broker["generation"]
    assert row["last_exit"] == "signal 9 (Killed)" and row["deaths"] == 1
    assert s.status("walstreamd")["pid"] == wal["pid"]
    wait_until("the other heard of both", lambda: s.status("walstreamd")["fake_peers_up"] == 1)


def test_backoff_grows_and_death_is_remembered(make):
    s = make(deeds={"brokerd": "late-exit 3"})
    row = wait_until("it died a few times", lambda: (lambda r: r if r["deaths"] >= 4 else None)(
        s.status("brokerd")))
    assert row["last_exit"] == "exit status 3"
    waits = [int(x) for x in re.findall(r"brokerd: died: .* again in (\d+) ms", s.log())]
    assert len(waits) >= 3 and waits[2] > waits[0]
    assert s.wait_state("walstreamd", "UP")["restarts"] == 0
    s.deed("brokerd", "well")
    s.wait_state("brokerd", "UP")
    s.stop()
    s.start("-f")
    again = s.wait_state("brokerd", "UP")
    assert again["deaths"] >= 4 and again["restarts"] == 0


def test_dying_before_ready_is_throttled(make):
    s = make(deeds={"brokerd": "exit 1"})
    row = s.wait_state("brokerd", "THROTTLED")
    assert row["pid"] is None and row["uptime_s"] is None and "again" in row["text"]
    assert "died before it was ready: exit status 1" in s.log()
    s.wait_state("walstreamd", "UP")
    s.deed("brokerd", "well")
    s.wait_state("brokerd", "UP")


def test_exit_78_stays_down_until_reload(make):
    s = make(deeds={"brokerd": "exit 78"})
    s.wait_state("brokerd", "HELD")
    deaths = s.status("brokerd")["deaths"]
    s.wait_state("walstreamd", "UP")
    assert s.status("brokerd")["deaths"] == deaths == 1
    assert "stays down" in s.log()
    error = s.ask("mqtt.sessions")[1]
    assert "HELD" in error["message"]
    s.deed("brokerd", "well")
    rows, error = s.ask("reload")
    assert error is None and {"worker": "brokerd", "verdict": "ok", "text": "started with it"} in rows
    s.wait_state("brokerd", "UP")


def test_hanging_worker_is_aborted(make):
    s = make(deeds={"brokerd": "hang"})
    s.wait_state("walstreamd", "UP")
    row = wait_until("it was aborted", lambda: (lambda r: r if "hangs" in r["last_exit"] else None)(
        s.status("brokerd")))
    assert re.fullmatch(r"hangs: 2 pings unanswered; signal 6 \(Aborted\)(, core dumped)?", row["last_exit"])


def test_stopped_process_is_killed(make):
    """SIGABRT does not end a process that does not run: SIGKILL does."""
    s = make()
    pid = s.wait_up()[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    row = wait_until("it was killed", lambda: (lambda r: r if r["restarts"] == 1 else None)(
        s.status("brokerd")))
    assert "hangs" in row["last_exit"] and not process_alive(pid)


def test_never_ready_is_ended(make):
    s = make(deeds={"brokerd": "slow"})
    row = wait_until("it was aborted", lambda: (lambda r: r if "not ready" in r["last_exit"] else None)(
        s.status("brokerd")))
    assert "signal 6" in row["last_exit"]


def test_listeners_outlive_the_worker(make):
    s = make()
    pid = s.wait_up()[1]["pid"]
    s.deed("brokerd", "slow")
    os.kill(pid, signal.SIGKILL)
    s.wait_state("brokerd", "STARTING")
    served = []
    client = threading.Thread(target=lambda: served.append(s.greet()))
    client.start()
    s.deed("brokerd", "well")
    assert s.ask("worker.restart", name="brokerd")[1] is None
    client.join(20)
    assert served == [s.wait_state("brokerd", "UP")["pid"]]


@pytest.mark.parametrize("deed", ["garbage", "twice"])
def test_bad_message_ends_that_worker_only(make, deed):
    s = make(deeds={"brokerd": deed})
    wal = s.wait_state("walstreamd", "UP")
    row = wait_until("it was killed", lambda: (lambda r: r if r["deaths"] >= 1 else None)(
        s.status("brokerd")))
    assert "signal 9" in row["last_exit"]
    if deed == "garbage":
        assert "garbled" in row["last_exit"]
    assert s.status("walstreamd")["pid"] == wal["pid"]
    s.deed("brokerd", "well")
    s.wait_state("brokerd", "UP")


def test_other_version_is_held(make):
    s = make(deeds={"brokerd": "version"})
    row = s.wait_state("brokerd", "HELD")
    assert "0.0.1" in row["last_exit"] and "install" in row["last_exit"]


def test_missing_program(make):
    s = make(start=False)
    os.unlink(f"{s.libexec}/brokerd")
    s.start("-f")
    row = s.wait_state("brokerd", "THROTTLED")
    assert "brokerd: exec: No such file" in row["last_exit"] and "installed whole?" in row["last_exit"]


@pytest.mark.parametrize("deed", ["abort", "late-abort"])
def test_assert_line_and_core_are_kept(make, deed):
    s = make(deeds={"brokerd": deed})
    row = wait_until("it died", lambda: (lambda r: r if r["deaths"] >= 1 else None)(s.status("brokerd")))
    assert "fake_worker.c" in row["last_assert"] and "told to" in row["last_assert"]
    assert row["last_exit"].startswith("signal 6")
    with open("/proc/sys/kernel/core_pattern") as f:
        pattern = f.read().strip()
    if AS_ROOT and not is_sanitized(FAKE):
        assert "core dumped" in row["last_exit"]
    if "core dumped" in row["last_exit"] and not pattern.startswith("|"):
        assert row["core"].startswith(s.state_dir if pattern[0] != "/" else "/")
        assert os.path.isfile(row["core"]), row
    s.deed("brokerd", "well")
    s.wait_state("brokerd", "UP")
    with open(f"{s.state_dir}/deaths.json") as f:
        assert "told to" in json.load(f)["brokerd"]["last_assert"]
    s.stop()
    s.start("-f")
    assert "told to" in s.wait_state("brokerd", "UP")["last_assert"]


def test_start_and_stop_order(make):
    s = make(mode="embedded", deeds={"postgres": "slow"})
    s.wait_state("postgres", "STARTING")
    row = s.status("brokerd")
    assert row["state"] == "DOWN" and row["text"] == "waits for postgres" and row["pid"] is None
    s.deed("postgres", "well")
    s.ask("worker.restart", name="postgres")
    s.wait_state("postgres", "UP")
    s.wait_up()
    up = re.findall(r"(\w+): up, pid", s.log())
    assert up[0] == "postgres" and sorted(up[1:]) == ["brokerd", "walstreamd"]
    # Its later deaths do not take the others down.
    pids = [s.status(w)["pid"] for w in ("walstreamd", "brokerd")]
    os.kill(s.status("postgres")["pid"], signal.SIGKILL)
    wait_until("postgres is up again", lambda: s.status("postgres")["restarts"] == 2
               and s.status("postgres")["state"] == "UP")
    assert pids == [s.status(w)["pid"] for w in ("walstreamd", "brokerd")]
    assert s.stop() == 0
    assert re.findall(r"howdahd: (\w+): stopped", s.log()) == [
        "brokerd", "walstreamd", "postgres"]


def test_stubborn_worker_is_killed_at_stop(make):
    s = make(deeds={"brokerd": "stubborn"})
    s.wait_up()
    assert s.stop() == 0
    assert "brokerd: did not stop in good order: did not stop in time; signal 9" in s.log()


def test_second_sigterm_hurries(make):
    s = make(deeds={"brokerd": "stubborn", "walstreamd": "stubborn"})
    s.wait_up()
    s.process.send_signal(signal.SIGTERM)
    s.wait_state("brokerd", "STOPPING")
    s.process.send_signal(signal.SIGTERM)
    wait_until("it hurries", lambda: "stopping faster" in s.log())
    hurried = time.monotonic()
    # Signals that keep coming do not put the end off: two workers, half a second each.
    while s.process.poll() is None and time.monotonic() < hurried + 8:
        s.process.send_signal(signal.SIGTERM)
        try:
            s.process.wait(0.1)
        except subprocess.TimeoutExpired:
            pass
    assert s.process.poll() == 0


def test_reload_verdicts(make):
    s = make()
    s.wait_up()
    pids = [s.status(w)["pid"] for w in ("walstreamd", "brokerd")]
    s.write_conf(brokerd='fake = "new";')
    rows, error = s.ask("reload")
    assert error is None
    assert sorted((r["worker"], r["verdict"], r["text"]) for r in rows) == [
        ("brokerd", "ok", "taken"), ("walstreamd", "ok", "taken")]
    wait_until("text", lambda: s.status("brokerd")["text"] == "fake, reloaded new")
    # One refuses: nobody keeps the new one.
    s.write_conf(brokerd='fake = "bad";', walstreamd='fake = "newer";')
    rows, error = s.ask("reload")
    assert error["code"] == "invalid" and "old configuration" in error["message"]
    assert [r["worker"] for r in rows] == ["brokerd"] and "not good" in rows[0]["text"]
    wait_until("walstreamd has the old one again", lambda: "newer" not in s.status("walstreamd")["text"])
    assert s.status("brokerd")["text"] == "fake, reloaded new"
    # The supervisor's own keys.
    s.write_conf(top='log_level = "loud";')
    rows, error = s.ask("reload")
    assert error["code"] == "invalid" and "log_level" in rows[0]["text"] and ":1" in rows[0]["text"]
    assert pids == [s.status(w)["pid"] for w in ("walstreamd", "brokerd")]
    s.write_conf(top='log_level = "debug";', mode="embedded")
    rows, error = s.ask("reload")
    assert error["code"] == "invalid" and "postgres.mode: cannot change" in rows[0]["text"]
    assert s.status("postgres") is None
    s.write_conf(top='log_level = "debug";', brokerd='fake = "new";')
    assert s.ask("reload")[1] is None
    # SIGHUP is the same without an answer.
    s.write_conf(brokerd='fake = "hup";')
    s.process.send_signal(signal.SIGHUP)
    wait_until("text", lambda: s.status("brokerd")["text"] == "fake, reloaded hup")


def test_reload_of_keys_that_need_a_restart(make):
    s = make()
    wal, broker = s.wait_up()
    s.write_conf(brokerd='slow_key = "x"; slowest_key = "y";')
    rows, error = s.ask("reload")
    assert error is None
    texts = {(r["worker"], r["verdict"]): r["text"] for r in rows}
    assert texts[("brokerd", "ok")] == "brokerd.slow_key changed: restarted"
    assert texts[("howdahd", "restart")].startswith("brokerd.slowest_key: takes effect when")
    assert texts[("walstreamd", "ok")] == "taken"
    wait_until("restarted", lambda: s.status("brokerd")["pid"] not in (None, broker["pid"]))
    s.wait_state("brokerd", "UP")
    assert s.status("walstreamd")["pid"] == wal["pid"]
    rows, _ = s.ask("reload")
    assert {(r["worker"], r["text"]) for r in rows} == {("walstreamd", "taken"), ("brokerd", "taken")}


def test_reload_of_a_worker_that_dies_meanwhile(make):
    s = make()
    pid = s.wait_up()[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    s.write_conf(brokerd='fake = "new";')
    rows, error = s.ask("reload")
    assert error and re.search("went away|no answer", rows[0]["text"])
    s.wait_state("brokerd", "UP")
    assert s.ask("reload")[1] is None


def test_reload_while_one_starts(make):
    """It gets the new configuration once it is ready; nobody waits for it."""
    s = make(deeds={"brokerd": "late-ready"})
    s.wait_state("walstreamd", "UP")
    s.wait_state("brokerd", "STARTING")
    wait_until("it is in its init", lambda: s.status("brokerd")["text"])
    s.write_conf(brokerd='fake = "later";')
    assert s.ask("reload")[1] is None
    s.wait_state("brokerd", "UP")
    wait_until("text", lambda: s.status("brokerd")["text"] == "fake, reloaded later")
    assert s.status("brokerd")["restarts"] == 0


def test_reload_of_a_slow_key_while_one_starts(make):
    """Once it is ready it takes it, says what needs a restart, and is restarted."""
    s = make(deeds={"brokerd": "late-ready"})
    s.wait_state("walstreamd", "UP")
    pid = s.wait_state("brokerd", "STARTING")["pid"]
    wait_until("it is in its init", lambda: s.status("brokerd")["text"])
    s.deed("brokerd", "well")
    s.write_conf(brokerd='slow_key = "x";')
    assert s.ask("reload")[1] is None
    wait_until("restarted", lambda: s.status("brokerd")["pid"] not in (None, pid))
    row = s.wait_state("brokerd", "UP")
    assert row["restarts"] == 1 and row["deaths"] == 0
    assert "brokerd.slow_key changed while it started" in s.log()


def test_reload_that_is_taken_back_restarts_nobody(make):
    s = make()
    pids = [row["pid"] for row in s.wait_up()]
    s.write_conf(brokerd='slow_key = "x";', walstreamd='fake = "bad";')
    assert s.ask("reload")[1]["code"] == "invalid"
    s.write_conf()
    rows, error = s.ask("reload")
    assert error is None and all(r["text"] == "taken" for r in rows)
    assert pids == [s.wait_state(w, "UP")["pid"] for w in ("walstreamd", "brokerd")]


def test_reload_enables_and_disables(make):
    s = make()
    wal, broker = s.wait_up()
    s.write_conf(brokerd="enabled = false;")
    rows, error = s.ask("reload")
    assert error is None and {"worker": "brokerd", "verdict": "ok", "text": "stopped"} in rows
    wait_until("it is gone", lambda: s.status("brokerd") is None)
    assert not process_alive(broker["pid"])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", s.port), 1)
    assert s.ask("worker.restart", name="brokerd")[1]["code"] == "invalid"
    s.write_conf()
    assert s.ask("reload")[1] is None
    s.wait_state("brokerd", "UP")
    s.greet()
    # walstreamd is told at its birth who reads the ring: it was born anew with each change.
    assert "brokerd.enabled changed" in [r for r in rows if r["worker"] == "walstreamd"][0]["text"]
    assert s.wait_state("walstreamd", "UP")["pid"] != wal["pid"]


def test_every_worker(make):
    """All of them: the order of the stop; each reader of the ring that comes or goes, walstreamd hears of."""
    s = make(start=False)
    port = free_port()
    s.write_conf(watchd=f'listeners = ( {{ url = "http://127.0.0.1:{port}"; }} );')
    s.start("-f")
    pid = s.wait_up()[0]["pid"]
    s.wait_state("watchd", "UP")
    s.write_conf()
    rows, error = s.ask("reload")
    assert error is None and {"worker": "watchd", "verdict": "ok", "text": "stopped"} in rows
    assert "watchd.enabled changed" in [r for r in rows if r["worker"] == "walstreamd"][0]["text"]
    s.write_conf(watchd=f'listeners = ( {{ url = "http://127.0.0.1:{port}"; }} );')
    assert s.ask("reload")[1] is None
    s.wait_state("watchd", "UP")
    assert s.wait_state("walstreamd", "UP")["pid"] != pid
    assert s.stop() == 0
    assert re.findall(r"howdahd: (\w+): stopped", s.log())[-3:] == ["brokerd", "watchd", "walstreamd"]


def test_reload_changes_listeners(make):
    s = make()
    pid = s.wait_up()[1]["pid"]
    other = free_port()
    s.write_conf(ports=[s.port, other])
    rows, error = s.ask("reload")
    assert error is None and "brokerd.listeners changed" in [r for r in rows if r["worker"] == "brokerd"][0]["text"]
    wait_until("restarted", lambda: s.status("brokerd")["pid"] not in (None, pid))
    assert s.greet() == s.wait_state("brokerd", "UP")["pid"]
    with socket.create_connection(("127.0.0.1", other)) as c:
        assert int(c.makefile().readline()) == s.wait_state("brokerd", "UP")["pid"]
    # A port that is taken: refused, nothing changes.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        s.write_conf(ports=[s.port, port])
        rows, error = s.ask("reload")
        assert error and f"port {port}" in rows[0]["text"] and "choose another port" in rows[0]["text"]
    socket.create_connection(("127.0.0.1", other)).close()


def test_taken_port_at_start(make):
    s = make(start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", s.port))
        taken.listen()
        s.start("-f", wait=False)
        assert s.process.wait(20) == 1
    assert f"port {s.port}" in s.log() and "ss -ltnp" in s.log()


def test_second_supervisor_is_refused(make):
    s = make()
    s.wait_up()
    done = subprocess.run(s.command("-f"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=20)
    assert done.returncode == 1 and "another howdahd" in done.stdout
    assert s.status("brokerd")["state"] == "UP"


def test_folders_are_named_plainly(make):
    """PostgreSQL writes its data directory like that, and the two are compared."""
    s = make(start=False)
    with open(s.conf) as f:
        text = f.read()
    with open(s.conf, "w") as f:
        f.write(text.replace(f'"{s.state_dir}"', f'"{s.root}//state/"'))
    s.start("-f")
    s.wait_up()
    assert s.ask("suite.info")[0][0]["state_dir"] == s.state_dir


@pytest.mark.skipif(not AS_ROOT, reason="asks for another user's rights")
def test_folder_that_only_roots_groups_may_use(make):
    s = make(start=False)
    os.chown(s.state_dir, 0, 0)
    os.chmod(s.state_dir, 0o770)
    before = os.getgroups()
    os.setgroups([0])
    try:
        done = subprocess.run(s.command("-f"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=20)
    finally:
        os.setgroups(before)
    assert done.returncode == 78 and f"user {USER} cannot use {s.state_dir}" in done.stdout


def test_lock_that_is_a_link(make):
    s = make(start=False)
    victim = f"{s.root}/victim"
    with open(victim, "w") as f:
        f.write("precious")
    os.link(victim, f"{s.state_dir}/howdahd.pid")
    done = subprocess.run(s.command("-f"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=20)
    assert done.returncode == 1 and "is no plain file of its own" in done.stdout
    with open(victim) as f:
        assert f.read() == "precious"


def test_after_sigkill_of_the_supervisor(make):
    s = make()
    wal, broker = s.wait_up()
    instance = s.ask("suite.info")[0][0]["instance"]
    os.kill(broker["pid"], signal.SIGKILL)
    wait_until("it is up again", lambda: s.status("brokerd")["restarts"] == 1)
    broker = s.wait_state("brokerd", "UP")
    assert broker["deaths"] == 1
    s.process.kill()
    s.process.wait()
    wait_until("the workers finish", lambda: not process_alive(wal["pid"]) and not process_alive(broker["pid"]))
    assert os.path.exists(f"{s.run_dir}/control.sock")
    s.start("-f")
    s.wait_up()
    assert s.ask("suite.info")[0][0]["instance"] == instance and len(instance) == 32
    assert s.status("brokerd")["deaths"] == 1


def test_commands(make):
    s = make()
    _, broker = s.wait_up()
    assert s.ask("mqtt.sessions") == ([{"fake_pid": broker["pid"]}], None)
    assert s.ask("log", level="debug")[1] is None
    assert s.ask("log", level="shout")[1]["code"] == "invalid"
    assert s.ask("worker.restart", name="nobody")[1]["code"] == "not-found"
    assert s.ask("stats", worker="nobody")[1]["code"] == "not-found"
    info = s.ask("suite.info")[0][0]
    assert info["node"] == "t" and info["state_dir"] == s.state_dir and info["user"] == USER
    s.ask("worker.restart", name="brokerd")
    row = wait_until("restarted", lambda: (lambda r: r if r["pid"] not in (None, broker["pid"]) else None)(
        s.status("brokerd")))
    assert row["deaths"] == 0


def test_check(make):
    s = make(start=False)
    done = subprocess.run(s.command("-t"), stdout=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 0 and done.stdout == f"{s.conf}: good\n"
    s.write_conf(brokerd='fake = "bad"; unheard_of = 1;', top='nod = "x"; log_level = 3;')
    done = subprocess.run(s.command("-t"), stdout=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 78
    for word in ("nod", "log_level", "unheard_of"):
        assert word in done.stdout, done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == len(set(lines)), "each finding once"
    s.start("-f", wait=False)
    assert s.process.wait(20) == 78


def test_signals_that_its_parent_blocked(make):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP])
    try:
        s = make()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    pid = s.wait_up()[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until("its death is seen", lambda: s.status("brokerd")["deaths"] == 1)
    assert s.stop() == 0


def test_background(make):
    s = make(start=False)
    done = subprocess.run(s.command(), stdout=subprocess.DEVNULL, stderr=open(s.log_path, "a"), timeout=20,
                          env={**os.environ, "HOWDAH_BRISK": "1"})
    assert done.returncode == 0
    s.wait_up()
    with open(f"{s.state_dir}/howdahd.pid") as f:
        pid = int(f.read())
    assert pid == s.status("howdahd")["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until("it is gone", lambda: not process_alive(pid))


def test_notify(make):
    """READY once the workers are up, STATUS, RELOADING with its time, STOPPING."""
    s = make(start=False)
    path = f"{s.root}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as n:
        n.bind(path)
        n.settimeout(20)
        s.env = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        s.start()

        def until(word):
            got = []
            while not any(word in g for g in got):
                got.append(n.recv(4096).decode())
            return "\n".join(got)
        until("READY=1")
        s.wait_up()
        until("STATUS=2 of 2 workers up")
        until("WATCHDOG=1")
        s.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in until("RELOADING=1")
        until("READY=1")
        s.process.send_signal(signal.SIGTERM)
        until("STOPPING=1")
    assert s.process.wait(20) == 0


def test_systemd_sockets(make):
    """A listening socket that we are started with is taken where its address is configured."""
    s = make(start=False)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", s.port))
        sock.listen()
        os.set_inheritable(sock.fileno(), True)

        def as_systemd():
            os.dup2(sock.fileno(), 3)
            os.environ["LISTEN_PID"] = str(os.getpid())
        # LISTEN_PID must be the pid of howdahd itself: a shell that execs it knows that.
        log = open(s.log_path, "a")
        s.process = subprocess.Popen(
            ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *s.command("-f")],
            stdout=log, stderr=log, pass_fds=(3,) if sock.fileno() == 3 else (), close_fds=False,
            preexec_fn=as_systemd, env={**os.environ, "HOWDAH_BRISK": "1"})
        wait_until("the control socket", lambda: s.process.poll() is not None or s.answers())
        _, broker = s.wait_up()
        assert s.greet() == broker["pid"]
