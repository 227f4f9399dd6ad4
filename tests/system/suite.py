# SPDX-License-Identifier: PostgreSQL
"""
The real suite under test: howdahd with its workers, the embedded or a separate PostgreSQL, stock
MQTT clients. Every object cleans up after itself and then checks what must never be left behind.

Programs come from the environment that `make check-system` sets (HOWDAH_SBIN, HOWDAH_BIN,
HOWDAH_LIBEXEC, HOWDAH_DATA).
"""
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import psycopg2

AS_ROOT = os.getuid() == 0
USER = "howdah" if AS_ROOT else pwd.getpwuid(os.getuid()).pw_name

# Another server's programs than the distribution's (make check-matrix).
PG_BINDIR = os.environ.get("HOWDAH_PG_BINDIR")

# Text that no run may leave in a log, whatever it tested.
FORBIDDEN = ("ASSERT", "mem.leak", "AddressSanitizer", "LeakSanitizer", "ThreadSanitizer",
             "runtime error:", "MemorySanitizer")


def wait_until(what, condition, timeout=20.0, every=0.02):
    """Waits for condition() to be truthy and returns its value; what is for the failure's text."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s still not: {what}")
        time.sleep(every)


def is_sanitized(program):
    """Built with AddressSanitizer, which keeps what was freed and turns cores off."""
    with open(program, "rb") as f:
        return b"__asan_init" in f.read()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def short_dir(prefix):
    """A folder below /tmp that the workers' user may enter: socket paths must stay short."""
    path = tempfile.mkdtemp(prefix=prefix, dir="/tmp")
    os.chmod(path, 0o755)
    if AS_ROOT:
        shutil.chown(path, USER, USER)
    return path


def as_user(command, user=USER):
    """The command line that runs command as the unprivileged user, where we are root."""
    if not AS_ROOT:
        return command
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]


def process_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_naming(text):
    """(pid, command line) of every process whose command line holds text, ourselves not counted."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        pid = int(path.split("/")[2])
        try:
            with open(path, "rb") as f:
                line = f.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and pid != os.getpid() and process_alive(pid):
            found.append((pid, line))
    return found


class Postgres:
    """A throw-away server of its own: for external mode, and for servers of other versions."""

    def __init__(self, bindir=None, settings="", tcp=True, initdb=()):
        self.bindir = bindir or PG_BINDIR or sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.root = short_dir("hwpg.")
        self.data = f"{self.root}/data"
        self.port = free_port()
        self.process = None
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--locale=C", "--no-sync", *initdb)
        with open(f"{self.data}/postgresql.conf", "a") as f:
            f.write(f"wal_level = logical\nfsync = off\nport = {self.port}\n"
                    f"unix_socket_directories = '{self.root}'\n"
                    f"listen_addresses = '{'127.0.0.1' if tcp else ''}'\n"
                    f"max_prepared_transactions = 10\nmax_wal_senders = 10\n{settings}\n")
        self.start()

    def _run(self, program, *args):
        done = subprocess.run(as_user([f"{self.bindir}/{program}", *args]),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout

    def start(self):
        self.log = open(f"{self.root}/log", "a")
        self.process = subprocess.Popen(as_user([f"{self.bindir}/postgres", "-D", self.data]),
                                        stdout=self.log, stderr=self.log)
        wait_until("server accepts connections", self._accepts, 60)

    def _accepts(self):
        try:
            self.connect("postgres").close()
            return True
        except psycopg2.OperationalError:
            assert self.process.poll() is None, open(f"{self.root}/log").read()
            return False

    def connect(self, dbname="howdah", user="postgres"):
        conn = psycopg2.connect(host=self.root, port=self.port, user=user, dbname=dbname)
        conn.autocommit = True
        return conn

    def conninfo(self, dbname="howdah"):
        return f"host={self.root} port={self.port} user=postgres dbname={dbname}"

    def stop(self, how=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)
        self.log.close()

    def close(self):
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.root, ignore_errors=True)


class Subscriber:
    """mosquitto_sub, its messages collected as dictionaries (topic, payload, qos, properties…)."""

    def __init__(self, port, *topics, qos=1, version="mqttv5", client_id=None, extra=()):
        self.messages = []
        self.lock = threading.Lock()
        args = ["mosquitto_sub", "-p", str(port), "-V", version, "-q", str(qos), "-F", "%j"]
        for topic in topics:
            args += ["-t", topic]
        if client_id:
            args += ["-i", client_id]
        self.process = subprocess.Popen(args + list(extra), stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, bufsize=1)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.lock:
                self.messages.append(message)

    def snapshot(self):
        with self.lock:
            return list(self.messages)

    def payloads(self):
        return [json.loads(m["payload"]) for m in self.snapshot()]

    def wait_count(self, n, timeout=30):
        wait_until(f"{n} messages (have {len(self.messages)})", lambda: len(self.messages) >= n,
                   timeout)
        return self.snapshot()

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(10)
        self.thread.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


class Suite:
    """howdahd -f with a configuration, state and run folder of its own."""

    def __init__(self, brokerd="", walstreamd="", postgres="", top="", node="test", port=None,
                 env=None, start=True, libexec=None, watchd=None, etcd_port=None):
        self.libexec = libexec or os.environ["HOWDAH_LIBEXEC"]
        self.root = short_dir("hw.")
        self.node = node
        self.mqtt_port = port or free_port()
        self.etcd_port = etcd_port or free_port()
        # The keys of its section; None: it does not run.
        self.with_watchd = watchd is not None
        self.state_dir = f"{self.root}/state"
        self.run_dir = f"{self.root}/run"
        self.conf = f"{self.root}/howdah.conf"
        self.log_path = f"{self.root}/log"
        self.env = env or {}
        self.process = None
        self.log = None
        self.subscribers = []
        self.connections = []
        self.sections = {"brokerd": brokerd, "walstreamd": walstreamd, "postgres": postgres,
                         "top": top, "watchd": watchd or ""}
        self.embedded = "external" not in postgres
        if PG_BINDIR and self.embedded:
            self.sections["postgres"] += f' bindir = "{PG_BINDIR}";'
        self.write_conf()
        if start:
            self.start()
            self.wait_up()

    def write_conf(self):
        s = self.sections
        with open(self.conf, "w") as f:
            f.write(f'node = "{self.node}";\nstate_dir = "{self.state_dir}";\n'
                    f'run_dir = "{self.run_dir}";\n{s["top"]}\n')
            if AS_ROOT:
                f.write(f'user = "{USER}";\n')
            f.write(f'postgres = {{ {s["postgres"]} }};\nwalstreamd = {{ {s["walstreamd"]} }};\n'
                    f'brokerd = {{ listeners = ( {{ url = "mqtt://127.0.0.1:{self.mqtt_port}"; }} );'
                    f' {s["brokerd"]} }};\n'
                    f'watchd = {{ enabled = {str(self.with_watchd).lower()}; listeners = '
                    f'( {{ url = "http://127.0.0.1:{self.etcd_port}"; }} ); {s["watchd"]} }};\n')

    # -- processes ---------------------------------------------------------------------------

    def command(self, *args):
        return [f"{os.environ['HOWDAH_SBIN']}/howdahd", "-c", self.conf,
                "-L", self.libexec, "-D", os.environ["HOWDAH_DATA"], *args]

    def start(self):
        self.log = open(self.log_path, "a")
        env = {**os.environ, **self.env}
        # Sanitizer reports go to files that the teardown reads, since a worker's stderr is shared.
        self.process = subprocess.Popen(self.command("-f"), stdout=self.log, stderr=self.log, env=env)

    def log_text(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def pgctl(self, *args, check=True):
        """Runs pgctl; returns its standard output."""
        done = self.pgctl_raw(*args)
        if check:
            assert done.returncode == 0, f"pgctl {args}: {done.returncode}: {done.stderr}"
        return done.stdout

    def pgctl_command(self, *args):
        return [f"{os.environ['HOWDAH_BIN']}/pgctl", "-s", f"{self.run_dir}/control.sock", *args]

    def pgctl_raw(self, *args):
        return subprocess.run(self.pgctl_command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=60)

    def rows(self, *args):
        return [json.loads(line) for line in self.pgctl("-j", *args).splitlines()]

    def status(self, worker=None):
        """Rows of `pgctl status` by worker name; {} while the supervisor does not answer."""
        done = self.pgctl_raw("-j", "status")
        if done.returncode != 0:
            return {}
        rows = {r["worker"]: r for r in map(json.loads, done.stdout.splitlines())}
        return rows.get(worker, {}) if worker else rows

    def stat(self, worker, name):
        for row in self.rows("stats", worker):
            if row["name"] == name:
                return row["value"]
        raise AssertionError(f"{worker} has no counter {name}")

    def pid(self, worker):
        return self.status(worker).get("pid") or 0

    def postmaster_pid(self):
        try:
            with open(f"{self.state_dir}/postgres/postmaster.pid") as f:
                return int(f.readline())
        except (FileNotFoundError, ValueError):
            return 0

    def kill(self, worker, how=signal.SIGKILL):
        pid = self.postmaster_pid() if worker == "postmaster" else self.pid(worker)
        assert pid, f"{worker} has no process"
        os.kill(pid, how)
        return pid

    def workers(self):
        return (["postgres"] if self.embedded else []) + ["walstreamd", "brokerd"] + (
            ["watchd"] if self.with_watchd else [])

    def is_up(self):
        rows = self.status()
        return (all(rows.get(w, {}).get("state") == "UP" for w in self.workers())
                and rows["walstreamd"].get("text", "").startswith("streaming"))

    def wait_up(self, timeout=60):
        def up():
            assert self.process.poll() is None, self.log_text()[-4000:]
            return self.is_up()
        try:
            wait_until("suite is up", up, timeout, 0.1)
        except AssertionError:
            raise AssertionError(f"suite is not up: {self.status()}\n{self.log_text()[-4000:]}")

    def stop(self):
        """Stops in good order; the status must be 0."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("howdahd did not stop in 60 s\n" + self.log_text()[-4000:])
        self.process = None
        self.log.close()
        assert status == 0, f"howdahd ended with {status}\n" + self.log_text()[-4000:]

    # -- clients ------------------------------------------------------------------------------

    def connect(self, **kw):
        conn = psycopg2.connect(host=f"{self.run_dir}/postgres", user="howdah", dbname="howdah", **kw)
        conn.autocommit = True
        self.connections.append(conn)
        return conn

    def sql(self, text, *args):
        """One statement over a connection of its own; rows, or None."""
        conn = self.connect()
        try:
            with conn.cursor() as cur:
                cur.execute(text, args or None)
                return cur.fetchall() if cur.description else None
        finally:
            conn.close()

    def subscribe(self, *topics, **kw):
        """A mosquitto_sub that has its SUBACK."""
        client_id = kw.setdefault("client_id", f"sub{len(self.subscribers)}-{os.getpid()}")
        sub = Subscriber(self.mqtt_port, *topics, **kw)
        self.subscribers.append(sub)
        wait_until(f"subscription of {topics}", lambda: any(
            r["client_id"] == client_id and r["subscriptions"] >= len(topics)
            for r in self.rows("mqtt", "sessions")))
        return sub

    def publish(self, topic, payload, qos=1, version="mqttv5", extra=(), check=True):
        done = subprocess.run(["mosquitto_pub", "-p", str(self.mqtt_port), "-V", version, "-q", str(qos),
                               "-t", topic, "-m", payload, *extra],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        if check:
            assert done.returncode == 0, done.stdout
        return done

    # -- end ----------------------------------------------------------------------------------

    def close(self, allow=()):
        """Stops everything, then looks for what must not be there. allow: forbidden words that this
        test provoked on purpose."""
        for sub in self.subscribers:
            sub.close()
        for conn in self.connections:
            conn.close()
        try:
            self.stop()
            left = processes_naming(self.root)
            assert not left, f"processes left behind: {left}"
            text = self.log_text()
            for word in FORBIDDEN:
                if word in allow:
                    continue
                lines = [line for line in text.splitlines() if word in line]
                assert not lines, f"{word} in the log:\n" + "\n".join(lines[:20])
            cores = glob.glob(f"{self.state_dir}/**/core*", recursive=True)
            assert "ASSERT" in allow or not cores, f"core files: {cores}"
        except AssertionError as e:
            keep = os.environ.get("HOWDAH_KEEP_LOGS")
            if keep:
                shutil.copy(self.log_path, keep)
            raise AssertionError(f"{e}\n---- end of the suite's log:\n{self.log_text()[-3000:]}")
        finally:
            for pid, _ in processes_naming(self.root):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            shutil.rmtree(self.root, ignore_errors=True)


def external(make_suite, make_postgres, database="", conninfo=Postgres.conninfo, server=None, **options):
    """A server of its own and a suite on it that is up: (server, suite). database: more for CREATE DATABASE;
    conninfo(server): how the suite reaches it; server and options: of Postgres and Suite."""
    pg = make_postgres(**(server or {}))
    admin = pg.connect("postgres")
    admin.cursor().execute(f"CREATE DATABASE howdah {database}")
    admin.close()
    suite = make_suite(postgres=f'mode = "external"; conninfo = "{conninfo(pg)}";', start=False, **options)
    suite.start()
    wait_until("control socket", suite.status)
    suite.pgctl("db", "init")
    suite.wait_up()
    return pg, suite
