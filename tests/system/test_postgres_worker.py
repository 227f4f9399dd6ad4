# SPDX-License-Identifier: PostgreSQL
"""
The worker `postgres` alone, with the test in the supervisor's place: the embedded database's first
and later starts, and what remains of it when the worker or the server is killed.
"""
import fcntl
import glob
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import psycopg2
import pytest

from suite import AS_ROOT, FORBIDDEN, PG_BINDIR, USER, as_user, process_alive, short_dir, \
    wait_until

HELLO, READY, PONG, RELOADED, STATUS, RELAY, CONFIG, LISTENER, START, PING, RELOAD, STOP = \
    range(1, 13)
GENERATION = 5


def string(text):
    data = text.encode()
    return struct.pack(">I", len(data)) + data


class Worker:
    """One life of the worker."""

    def __init__(self, place, user=USER):
        self.place = place
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = os.memfd_create("page")
        os.ftruncate(page, 65536)
        program = f"{os.environ['HOWDAH_LIBEXEC']}/postgres"
        # Out of the way of 3 and 4, which they will be.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs.fileno(), page)]
        command = [sys.executable, "-c", "import os, sys; [os.dup2(int(fd), i + 3) for i, fd in "
                   "enumerate(sys.argv[1:3])]; os.execv(sys.argv[3], sys.argv[3:])",
                   *map(str, high), program, "-D", os.environ["HOWDAH_DATA"]]
        self.log = open(place.log, "a")
        self.process = subprocess.Popen(
            as_user(command, user) if user != "root" else command,
            pass_fds=high, stdout=self.log, stderr=self.log, cwd="/",
            env={"HOWDAH_GENERATION": str(GENERATION), "PATH": "/usr/bin:/bin"})
        theirs.close()
        for fd in (page, *high):
            os.close(fd)
        self.socket = ours
        self.statuses = []
        self.messages = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_until("HELLO", self._greeted)
        self._configure()

    def _read(self):
        while True:
            try:
                packet = self.socket.recv(20000)
            except OSError:
                return
            if not packet:
                return
            kind, size, _, generation = struct.unpack(">IIII", packet[:16])
            assert size == len(packet) - 16 and generation == GENERATION
            if kind == STATUS:
                self.statuses.append(packet[20:].decode())
            self.messages.append(kind)

    def send(self, kind, body=b"", fds=()):
        head = struct.pack(">IIII", kind, len(body), 1, GENERATION)
        socket.send_fds(self.socket, [head + body], list(fds))

    def _greeted(self):
        assert self.process.poll() is None, self.place.text()
        return HELLO in self.messages

    def _configure(self):
        config = os.memfd_create("config")
        os.write(config, self.place.config.encode())
        body = b"".join(string(s) for s in ("alpha", "i", self.place.state, self.place.run, USER,
                                            "debug"))
        self.send(CONFIG, body + struct.pack(">I", 7), [config])
        os.close(config)
        self.send(START)

    def wait_ready(self, timeout=60):
        def ready():
            assert self.process.poll() is None, self.place.text()
            return READY in self.messages
        wait_until("READY", ready, timeout)
        return self

    def wait_exit(self, timeout=60):
        status = self.process.wait(timeout)
        self.socket.close()
        self.log.close()
        return status

    def stop(self):
        self.send(STOP)
        return self.wait_exit()

    def kill(self):
        self.process.kill()
        self.wait_exit()


class Place:
    """State and run folders, over several lives of the worker."""

    def __init__(self):
        self.root = short_dir("hwpgw.")
        self.state, self.run = f"{self.root}/state", f"{self.root}/run"
        self.data, self.log = f"{self.state}/postgres", f"{self.root}/log"
        for path in (self.state, self.run):
            os.mkdir(path)
            if AS_ROOT:
                shutil.chown(path, USER, USER)
        self.config = f'postgres = {{ bindir = "{PG_BINDIR}"; }};' if PG_BINDIR else ""
        self.workers = []

    def start(self, **options):
        self.workers.append(Worker(self, **options))
        return self.workers[-1]

    def text(self):
        with open(self.log) as f:
            return f.read()

    def postmaster(self):
        with open(f"{self.data}/postmaster.pid") as f:
            return int(f.readline())

    def connect(self, dbname="howdah"):
        conn = psycopg2.connect(host=f"{self.run}/postgres", user="howdah", dbname=dbname)
        conn.autocommit = True
        return conn

    def query(self, sql):
        conn = self.connect()
        try:
            with conn.cursor() as cur:
                cur.execute(sql)
                return cur.fetchall() if cur.description else None
        finally:
            conn.close()

    def close(self):
        for w in self.workers:
            if w.process.poll() is None:
                w.kill()
        try:
            pid = self.postmaster()
            os.kill(pid, signal.SIGQUIT)
            wait_until("server gone", lambda: not process_alive(pid))
        except (FileNotFoundError, ProcessLookupError):
            pass
        text = self.text()
        shutil.rmtree(self.root)
        for word in FORBIDDEN:
            assert word not in text, text


@pytest.fixture
def place():
    p = Place()
    yield p
    p.close()


def test_first_and_second_start(place):
    w = place.start().wait_ready()
    settings = dict(place.query("SELECT name, setting FROM pg_settings"))
    assert settings["wal_level"] == "logical"
    assert settings["jit"] == "off"
    assert settings["listen_addresses"] == ""
    assert settings["max_replication_slots"] == "10"
    assert settings["max_prepared_transactions"] == "10"
    assert settings["data_checksums"] == "on"
    assert place.query("SELECT current_user, current_setting('server_encoding')") == \
        [("howdah", "UTF8")]
    assert place.query("SELECT count(*) > 0 FROM howdah.schema_version") == [(True,)]
    place.query("CREATE TABLE t AS SELECT 42 AS a")
    place.query("ALTER SYSTEM SET work_mem = '7MB'")
    with open(f"{place.data}/postgresql.conf", "a") as f:
        f.write("temp_buffers = '3MB'\nmax_connections = 77\n")
    server = place.postmaster()
    assert w.statuses[-1].endswith(f", pid {server}")
    assert w.stop() == 0
    assert not process_alive(server)
    assert "database system is shut down" in place.text()

    w = place.start().wait_ready()
    assert place.query("SELECT a FROM t") == [(42,)]
    settings = dict(place.query("SELECT name, current_setting(name) FROM pg_settings"))
    assert settings["work_mem"] == "7MB"
    assert settings["temp_buffers"] == "3MB"
    assert settings["max_connections"] == "77"  # the user's word comes after ours
    with open(f"{place.data}/postgresql.conf") as f:
        assert f.read().count("\ninclude 'howdah.conf'") == 1
    assert w.stop() == 0
    assert glob.glob(f"{place.state}/postgres.new*") == []


def test_who_may_connect(place):
    w = place.start().wait_ready()
    assert place.query("SELECT current_user") == [("howdah",)]  # whoever runs this test
    if AS_ROOT:
        psql = ["psql", "-XAtc", "SELECT 1", "-h", f"{place.run}/postgres", "-U", "howdah", "howdah"]
        assert subprocess.run(as_user(psql), stdout=subprocess.PIPE).stdout == b"1\n"
        done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                               *psql], stderr=subprocess.PIPE)
        assert done.returncode != 0 and b"eer authentication failed" in done.stderr
    assert w.stop() == 0


def test_killed_worker_leaves_a_server_to_adopt(place):
    w = place.start().wait_ready()
    server = place.postmaster()
    conn = place.connect()
    w.kill()
    time.sleep(0.3)
    assert process_alive(server)
    w = place.start().wait_ready()
    assert place.postmaster() == server
    assert "adopting" in place.text()
    with conn.cursor() as cur:
        cur.execute("SELECT 1")  # its clients noticed nothing
    conn.close()
    # It is watched too: its death ends the worker.
    os.kill(server, signal.SIGKILL)
    assert w.wait_exit() == 1
    w = place.start().wait_ready()
    assert w.stop() == 0


def test_killed_server_recovers(place):
    w = place.start().wait_ready()
    place.query("CREATE TABLE t AS SELECT generate_series(1, 100000) AS a")
    server = place.postmaster()
    # A backend that does not notice: it computes, and keeps the shared memory.
    conn = place.connect()
    pid = conn.get_backend_pid()

    def spin():
        try:
            conn.cursor().execute("DO $$ BEGIN LOOP END LOOP; END $$")
        except psycopg2.Error:
            pass
    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    wait_until("backend is busy", lambda: place.query(
        f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"))
    os.kill(server, signal.SIGKILL)
    assert w.wait_exit() == 1
    assert process_alive(pid)
    w = place.start().wait_ready()
    thread.join(20)
    assert any("that died" in s for s in w.statuses), w.statuses
    assert not process_alive(pid)
    assert place.query("SELECT count(*) FROM t") == [(100000,)]
    assert w.stop() == 0


def test_killed_while_creating(place):
    for _ in range(3):
        w = place.start()
        wait_until("initdb at work", lambda: glob.glob(f"{place.state}/postgres.new.*/PG_VERSION"))
        w.kill()
        assert not os.path.exists(place.data)
    w = place.start().wait_ready()
    assert glob.glob(f"{place.state}/postgres.new*") == []
    assert w.stop() == 0


def test_stop_while_creating(place):
    w = place.start()
    wait_until("initdb at work", lambda: glob.glob(f"{place.state}/postgres.new.*/PG_VERSION"))
    assert w.stop() == 0
    assert not os.path.exists(place.data)


def test_stale_pid_file(place):
    place.start().wait_ready().stop()
    # The pid of somebody else: not to be adopted, let alone signalled.
    with open(f"{place.data}/postmaster.pid", "w") as f:
        f.write(f"{os.getpid()}\n{place.data}\n0\n5432\n{place.run}/postgres\n\n0 0\nready\n")
    if AS_ROOT:
        shutil.chown(f"{place.data}/postmaster.pid", USER, USER)
    w = place.start()
    time.sleep(0.5)
    assert w.messages.count(READY) == 0 or place.postmaster() != os.getpid()
    if not w.messages.count(READY):
        os.unlink(f"{place.data}/postmaster.pid")  # the server itself refuses: it asks the kernel
    w.wait_ready()
    assert w.stop() == 0


def test_lock_file_of_a_zombie(place):
    place.start().wait_ready().stop()
    zombie = subprocess.Popen(["true"])  # not waited for: init may be slow at that, too
    wait_until("zombie", lambda: not process_alive(zombie.pid))
    with open(f"{place.data}/postmaster.pid", "w") as f:
        f.write(f"{zombie.pid}\n{place.data}\n0\n5432\n{place.run}/postgres\n\n0 0\nready\n")
    if AS_ROOT:
        shutil.chown(f"{place.data}/postmaster.pid", USER, USER)
    w = place.start().wait_ready()
    zombie.wait()
    assert "already exists" not in place.text()
    assert w.stop() == 0


def test_other_version_is_refused(place):
    place.start().wait_ready().stop()
    with open(f"{place.data}/PG_VERSION", "w") as f:
        f.write("12\n")
    assert place.start().wait_exit() == 78
    text = place.text()
    assert "made by PostgreSQL 12" in text and "pg_upgrade" in text
    with open(f"{place.data}/PG_VERSION") as f:
        assert f.read() == "12\n"


def test_not_a_data_directory(place):
    os.mkdir(place.data)
    with open(f"{place.data}/letters", "w") as f:
        f.write("precious")
    if AS_ROOT:
        shutil.chown(place.data, USER, USER)
    assert place.start().wait_exit() == 78
    assert "no data directory" in place.text()
    with open(f"{place.data}/letters") as f:
        assert f.read() == "precious"


def test_wrong_bindir(place):
    place.config = 'postgres = { bindir = "/nowhere"; };'
    assert place.start().wait_exit() == 78
    assert "postgres.bindir" in place.text()


def test_socket_path_too_long(place):
    place.run = f"{place.root}/{'r' * 100}"
    os.mkdir(place.run)
    assert place.start().wait_exit() == 78
    assert "shorter run_dir" in place.text()


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_root_is_refused(place):
    assert place.start(user="root").wait_exit() == 78
    assert "does not run as root" in place.text()


def test_supervisor_gone(place):
    w = place.start().wait_ready()
    server = place.postmaster()
    w.socket.shutdown(socket.SHUT_RDWR)
    assert w.process.wait(30) == 0
    assert not process_alive(server)
