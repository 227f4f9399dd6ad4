# SPDX-License-Identifier: PostgreSQL
"""
Both ends of the etcd v3 API for tests: `Etcd`, Debian's own server to compare with; `Client`, any call
that the protocol has, well formed or not, from our .proto files; `etcdctl`, the stock client.

The messages are compiled by protoc when they are first asked for: `api.RangeRequest` and so on. gRPC is
used by path (channel.unary_unary), so no generated stubs are needed.
"""
import importlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

# grpcio would take hold of every fork of a process that has channels, and tests start many programs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc  # noqa: E402
from google.protobuf import text_format  # noqa: E402

from proxy import TcpProxy  # noqa: E402
from suite import Postgres, Suite, free_port, short_dir, wait_until  # noqa: E402

PROTO_DIR = f"{os.environ.get('HOWDAH_SRCDIR', os.path.dirname(__file__) + '/../..')}/watchd/proto"

# call: service, request (its answer's name follows from it unless given), answer.
UNARY = {
    "Range": ("KV", "RangeRequest"), "Put": ("KV", "PutRequest"), "Txn": ("KV", "TxnRequest"),
    "DeleteRange": ("KV", "DeleteRangeRequest"), "Compact": ("KV", "CompactionRequest"),
    "LeaseGrant": ("Lease", "LeaseGrantRequest"), "LeaseRevoke": ("Lease", "LeaseRevokeRequest"),
    "LeaseTimeToLive": ("Lease", "LeaseTimeToLiveRequest"),
    "LeaseLeases": ("Lease", "LeaseLeasesRequest"), "MemberList": ("Cluster", "MemberListRequest"),
    "Alarm": ("Maintenance", "AlarmRequest"), "Status": ("Maintenance", "StatusRequest"),
    "Defragment": ("Maintenance", "DefragmentRequest"), "Hash": ("Maintenance", "HashRequest"),
    "HashKV": ("Maintenance", "HashKVRequest"),
}
# Answers after which nobody knows whether a write was done.
UNKNOWN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL")


class Api:
    """The messages of all .proto files, by their names without package."""

    def __init__(self):
        self.modules = None

    def compile(self):
        folder = tempfile.mkdtemp(prefix="hwproto.")
        try:
            files = sorted(f for f in os.listdir(PROTO_DIR) if f.endswith(".proto"))
            subprocess.run(["protoc", "-I", PROTO_DIR, f"--python_out={folder}", *files], check=True)
            sys.path.insert(0, folder)
            self.modules = [importlib.import_module(f[:-len(".proto")] + "_pb2") for f in files]
        finally:
            sys.path.remove(folder)
            shutil.rmtree(folder)

    def __getattr__(self, name):
        if self.modules is None:
            self.compile()
        for module in self.modules:
            if name in module.DESCRIPTOR.message_types_by_name:
                return getattr(module, name)
        raise AttributeError(name)


api = Api()


class CallError(Exception):
    """A call's status: code is gRPC's name of it."""

    def __init__(self, error):
        self.code = error.code().name
        self.details = error.details()
        super().__init__(f"{self.code}: {self.details}")

    @property
    def unknown(self):
        """The request may have been carried out."""
        return self.code in UNKNOWN


class Stream:
    """A bidirectional stream. Answers are collected as they come, with their times of arrival."""

    def __init__(self, method):
        self.requests = queue.Queue()
        self.answers = []
        self.times = []
        self.error = None
        self.ended = False
        self.changed = threading.Condition()
        self.call = method(iter(self.requests.get, None))
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for answer in self.call:
                with self.changed:
                    self.answers.append(answer)
                    self.times.append(time.monotonic())
                    self.changed.notify_all()
        except grpc.RpcError as e:
            self.error = CallError(e)
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def send(self, request):
        self.requests.put(request)

    def snapshot(self):
        with self.changed:
            return list(self.answers)

    def wait(self, what, condition, timeout=10):
        """Waits for condition(answers) to be truthy and returns it; an ended stream waits no longer."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                value = condition(self.answers)
                if value:
                    return value
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    have = "; ".join(text_format.MessageToString(a, as_one_line=True) for a in self.answers[-20:])
                    raise AssertionError(f"{'stream ended' if self.ended else f'after {timeout} s'}, still not: "
                                         f"{what}; last were {have}; {self.error or ''}")
                self.changed.wait(left)

    def close_send(self):
        """Half-closes."""
        self.requests.put(None)

    def close(self):
        self.requests.put(None)
        self.call.cancel()
        self.thread.join(10)


class WatchStream(Stream):
    """Watch: create, cancel, progress and what came, by watch id."""

    def create(self, key=b"", range_end=b"", wait=True, **options):
        """Creates a watcher; returns its `created` answer, or nothing if that is not waited for."""
        before = len([a for a in self.snapshot() if a.created])
        self.send(api.WatchRequest(create_request=api.WatchCreateRequest(
            key=key, range_end=range_end, **options)))
        if wait:
            return self.wait("created", lambda answers: [a for a in answers if a.created][before:])[0]
        return None

    def cancel(self, watch_id):
        self.send(api.WatchRequest(cancel_request=api.WatchCancelRequest(watch_id=watch_id)))

    def progress(self):
        self.send(api.WatchRequest(progress_request=api.WatchProgressRequest()))

    def events(self, watch_id=0):
        return [e for a in self.snapshot() if a.watch_id == watch_id for e in a.events]

    def wait_events(self, n, watch_id=0, timeout=10):
        """The first n events of a watcher, and whatever has come after them."""
        self.wait(f"{n} events of watch {watch_id}", lambda answers: sum(
            len(a.events) for a in answers if a.watch_id == watch_id) >= n, timeout)
        return self.events(watch_id)

    def wait_canceled(self, watch_id, timeout=10):
        return self.wait(f"watch {watch_id} is canceled", lambda answers: [
            a for a in answers if a.canceled and a.watch_id == watch_id], timeout)[0]


class Client:
    """One connection. A call that fails raises CallError; its arguments are the request's fields, or a
    request that is ready."""

    def __init__(self, endpoint, timeout=20, **options):
        self.timeout = timeout
        self.channel = grpc.insecure_channel(endpoint, [
            ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.use_local_subchannel_pool", 1), *options.items()])
        self.streams = []
        self.methods = {}

    def method(self, name):
        if name not in self.methods:
            service, request = UNARY[name]
            answer = getattr(api, request.replace("Request", "Response"))
            self.methods[name] = self.channel.unary_unary(
                f"/etcdserverpb.{service}/{name}",
                request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString)
        return self.methods[name]

    def call(self, name, request=None, timeout=None, **fields):
        if request is None:
            request = getattr(api, UNARY[name][1])(**fields)
        try:
            return self.method(name)(request, timeout=timeout or self.timeout)
        except grpc.RpcError as e:
            raise CallError(e) from None

    def raw(self, path, request=b"", timeout=None, metadata=None):
        """A unary call of bytes."""
        try:
            return self.channel.unary_unary(path)(request, timeout=timeout or self.timeout, metadata=metadata)
        except grpc.RpcError as e:
            raise CallError(e) from None

    def error(self, name, request=None, **fields):
        """The status of a call that must fail: "CODE: text"."""
        try:
            answer = self.call(name, request, **fields)
        except CallError as e:
            return str(e)
        raise AssertionError(f"{name} {request or fields} did not fail: {answer}")

    def _stream(self, kind, path, answer):
        self.streams.append(kind(self.channel.stream_stream(
            path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString)))
        return self.streams[-1]

    def watch(self):
        return self._stream(WatchStream, "/etcdserverpb.Watch/Watch", api.WatchResponse)

    def keepalive(self):
        return self._stream(Stream, "/etcdserverpb.Lease/LeaseKeepAlive", api.LeaseKeepAliveResponse)

    def keep_alive_once(self, lease_id, timeout=10):
        """One keepalive over a stream of its own; the TTL that is answered."""
        stream = self.keepalive()
        stream.send(api.LeaseKeepAliveRequest(ID=lease_id))
        ttl = stream.wait("keepalive is answered", list, timeout)[0].TTL
        stream.close()
        return ttl

    def snapshot(self):
        """All parts of Maintenance.Snapshot."""
        call = self.channel.unary_stream("/etcdserverpb.Maintenance/Snapshot",
                                         request_serializer=lambda m: m.SerializeToString(),
                                         response_deserializer=api.SnapshotResponse.FromString)
        return list(call(api.SnapshotRequest(), timeout=self.timeout))

    # What most tests say most often.

    def put(self, key, value=b"", **options):
        return self.call("Put", key=key, value=value, **options)

    def get(self, key, range_end=b"", **options):
        return self.call("Range", key=key, range_end=range_end, **options)

    def delete(self, key, range_end=b"", **options):
        return self.call("DeleteRange", key=key, range_end=range_end, **options)

    def txn(self, compare=(), success=(), failure=()):
        return self.call("Txn", compare=compare, success=success, failure=failure)

    def revision(self):
        return self.get(b"\0").header.revision

    def close(self):
        for stream in self.streams:
            stream.close()
        self.channel.close()


def op(request):
    """A request as an operation of a Txn."""
    field = {"RangeRequest": "request_range", "PutRequest": "request_put", "TxnRequest": "request_txn",
             "DeleteRangeRequest": "request_delete_range"}[request.DESCRIPTOR.name]
    return api.RequestOp(**{field: request})


def prefix_end(key):
    """The range_end that makes key a prefix."""
    for i in range(len(key) - 1, -1, -1):
        if key[i] < 0xff:
            return key[:i] + bytes([key[i] + 1])
    return b"\0"


def kinds():
    """The servers that a test runs on, with the same assertions; HOWDAH_ETCD_KINDS chooses."""
    return os.environ.get("HOWDAH_ETCD_KINDS", "etcd,watchd").split(",")


class Endpoint:
    """What a server of the etcd API is to a test: an address, and clients that end with it."""

    def __init__(self, endpoint):
        self.endpoint = endpoint
        self.clients = []

    def client(self, **options):
        self.clients.append(Client(self.endpoint, **options))
        return self.clients[-1]

    def etcdctl(self, *args, stdin=None, check=True, timeout=60):
        """Runs etcdctl 3.4; the completed process, its output as text."""
        done = subprocess.run(self.etcdctl_command(*args), input=stdin, env=self.etcdctl_env(), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)
        if check:
            assert done.returncode == 0, f"etcdctl {args}: {done.returncode}: {done.stderr}{done.stdout}"
        return done

    def etcdctl_command(self, *args):
        return ["etcdctl", "--endpoints", self.endpoint, *args]

    def etcdctl_env(self):
        return {**os.environ, "ETCDCTL_API": "3"}

    def ready(self):
        try:
            with_client = Client(self.endpoint, timeout=1)
            try:
                with_client.get(b"ready")
                return True
            finally:
                with_client.close()
        except CallError:
            return False

    def wait_ready(self, timeout=30):
        wait_until(f"{self.endpoint} answers", self.ready, timeout)

    def close_clients(self):
        for client in self.clients:
            client.close()
        self.clients.clear()


class Etcd(Endpoint):
    """Debian's etcd, one member, with a folder and ports of its own."""
    kind = "etcd"

    def __init__(self, *options):
        super().__init__(f"127.0.0.1:{free_port()}")
        self.root = short_dir("hwetcd.")
        self.options = options
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.process = None
        self.start()

    def start(self):
        url = f"http://{self.endpoint}"
        with open(f"{self.root}/log", "a") as log:
            self.process = subprocess.Popen(
                ["etcd", "--data-dir", f"{self.root}/data", "--listen-client-urls", url,
                 "--advertise-client-urls", url, "--listen-peer-urls", self.peer,
                 "--initial-advertise-peer-urls", self.peer, "--initial-cluster", f"default={self.peer}",
                 "--logger", "zap", "--log-level", "error", *self.options],
                stdout=log, stderr=log, cwd=self.root)
        self.wait_ready()

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def close(self):
        self.close_clients()
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


class Watchd(Endpoint):
    """The suite with watchd; section: keys of its part of the configuration."""
    kind = "watchd"

    def __init__(self, section="", **options):
        self.suite = Suite(watchd=section, **options)
        super().__init__(f"127.0.0.1:{self.suite.etcd_port}")
        if options.get("start", True):
            self.wait_ready()

    def close(self):
        self.close_clients()
        self.suite.close()


class Nodes:
    """Suites with watchd on one PostgreSQL, each reaching it by a proxy of its own."""

    def __init__(self, count, section="", settings=""):
        self.pg = Postgres(settings=settings)
        admin = self.pg.connect("postgres")
        admin.cursor().execute("CREATE DATABASE howdah")
        admin.close()
        self.proxies = [TcpProxy(self.pg.port) for _ in range(count)]
        self.nodes = [self._start(i, section) for i in range(count)]
        for node in self.nodes:
            node.suite.wait_up(120)
            node.wait_ready(60)

    def _start(self, i, section):
        conninfo = f"host=127.0.0.1 port={self.proxies[i].port} user=postgres dbname=howdah connect_timeout=3"
        node = Watchd(section, node=f"n{i}", start=False, postgres=f'mode = "external"; conninfo = "{conninfo}";')
        node.suite.start()
        wait_until("control socket", node.suite.status)
        if i == 0:
            node.suite.pgctl("db", "init")
        return node

    def __getitem__(self, i):
        return self.nodes[i]

    def close(self):
        for node in self.nodes:
            node.close()
        for proxy in self.proxies:
            proxy.close()
        self.pg.close()


def serve(kind, progress_ms=None, max_request=None, quota=None):
    """A server of its own, "etcd" or "watchd", with etcd's defaults but for what is given."""
    if kind == "etcd":
        given = [("--experimental-watch-progress-notify-interval", progress_ms and f"{progress_ms}ms"),
                 ("--max-request-bytes", max_request), ("--quota-backend-bytes", quota)]
        return Etcd(*(f"{name}={value}" for name, value in given if value))
    given = [("progress_interval", progress_ms and f"{progress_ms}ms"),
             ("max_request_bytes", max_request and f"{max_request}B"), ("quota", quota and f"{quota}B")]
    return Watchd(" ".join(f'{name} = "{value}";' for name, value in given if value))
