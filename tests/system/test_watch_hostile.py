# SPDX-License-Identifier: PostgreSQL
"""
Clients that break the rules, on a running suite: frames out of order, floods, bombs, slow readers, calls
that are never finished, messages that are too large or none. Each is refused with etcd's error or loses
its connection; meanwhile and afterwards another client is served, and what they held comes back: memory,
descriptors, calls.

What is asked of errors is asked of Debian's etcd too.
"""
import os
import socket
import struct
import time
from contextlib import ExitStack

import pytest

from etcd import Watchd, api, kinds, serve
from rawh2 import ENHANCE_YOUR_CALM, PREFACE, RawH2, frames, message, raw_frame
from suite import is_sanitized, wait_until

RANGE, PUT, WATCH = "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch"
MAX_CONNECTIONS, MAX_STREAMS = 300, 2000


class Server:
    """watchd, with what it holds."""

    def __init__(self):
        self.watchd = Watchd(f"max_connections = {MAX_CONNECTIONS}; max_streams = {MAX_STREAMS};")
        self.endpoint = self.watchd.endpoint
        self.suite = self.watchd.suite
        self.pid = self.suite.pid("watchd")
        self.sanitized = is_sanitized(f"{self.suite.libexec}/watchd")
        self.client = self.watchd.client()
        self.client.put(b"alive", b"1")

    def memory(self):
        """What the process has; nothing under ASan."""
        if self.sanitized:
            return 0
        with open(f"/proc/{self.pid}/status") as f:
            return int(next(line for line in f if line.startswith("VmRSS")).split()[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stat(self, name):
        return self.suite.stat("watchd", f"watch_{name}")

    def check_serves(self):
        """Another client is served, on its old connection and on a new one."""
        self.client.put(b"alive", b"1")
        with RawH2(self.endpoint) as other:
            request = api.RangeRequest(key=b"alive").SerializeToString()
            answer = other.answer(other.call(RANGE, message(request)))
            assert answer.status == (0, "")
            assert api.RangeResponse.FromString(answer.data[5:]).kvs[0].value == b"1"


@pytest.fixture(scope="module")
def running():
    s = Server()
    yield s
    s.watchd.close()


@pytest.fixture
def server(running):
    """The server, and that nothing is left of what the test did to it."""
    running.check_serves()
    before = running.descriptors(), running.memory()
    yield running
    running.check_serves()
    assert running.suite.pid("watchd") == running.pid
    wait_until("descriptors are back", lambda: running.descriptors() <= before[0])
    wait_until("calls are back", lambda: running.stat("streams") == 0)
    wait_until("connections are back", lambda: running.stat("connections") == 1)
    # malloc keeps some of what it had.
    assert running.memory() < before[1] + (48 << 20)


def connect(server, **how):
    return RawH2(server.endpoint, **how)


# --- frames ---

OUT_OF_ORDER = {
    "data on an idle stream": raw_frame(0, 0, 1, b"x"),
    "headers on an even stream": raw_frame(1, 5, 2, b"\x82"),
    "reset of an idle stream": raw_frame(3, 0, 1, struct.pack(">I", 8)),
    "continuation of nothing": raw_frame(9, 4, 1, b"\x82"),
    "headers inside headers": raw_frame(1, 0, 1, b"\x82") + raw_frame(1, 4, 3, b"\x82"),
    "ping inside headers": raw_frame(1, 0, 1, b"\x82") + raw_frame(6, 0, 0, b"12345678"),
    "data on stream 0": raw_frame(0, 0, 0, b"x"),
    "settings on a stream": raw_frame(4, 0, 1),
    "settings of five bytes": raw_frame(4, 0, 0, b"12345"),
    "acknowledgement with a body": raw_frame(4, 1, 0, b"123456"),
    "ping of three bytes": raw_frame(6, 0, 0, b"123"),
    "window grown by nothing": raw_frame(8, 0, 0, b"\0\0\0\0"),
    "window grown too far": raw_frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "initial window too large": raw_frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "frame of 16 MB": raw_frame(0, 0, 1, b"", length=0xFFFFFF),
    "padding longer than the frame": raw_frame(1, 0xC, 1, b"\xff\x82"),
    "push promise": raw_frame(5, 4, 1, b"\0\0\0\2\x82"),
    "HPACK index of nothing": raw_frame(1, 5, 1, b"\xff\x80\x80\x80\x80\x01"),
    "HPACK table that grows": raw_frame(1, 5, 1, b"\x3f\xff\xff\xff\x07"),
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_frames_out_of_order(server, name):
    before = server.stat("ended_protocol")
    with connect(server) as c:
        c.send(OUT_OF_ORDER[name])
        assert c.wait_end()
    wait_until("it is counted", lambda: server.stat("ended_protocol") == before + 1)


def test_not_http2(server):
    for said in (PREFACE[:-4] + b"XX\r\n", b"PRI * HTTP/2.0\r\n\r\n" + b"A" * 100):
        with connect(server, preface=False) as c:
            c.send(said)
            c.wait_end()
    for said in (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"\0" * 20000,
                 b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000):
        with connect(server, preface=False) as c:
            c.send(said)
            assert c.sock.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")


def test_wrong_requests(server):
    """Refused one by one; the connection goes on."""
    with connect(server) as c:
        bad = [c.headers(RANGE, end=True, method="GET"),
               c.headers(RANGE, end=True, content_type="text/plain"),
               c.headers(RANGE, end=True, extra=[("grpc-timeout", "soon")])]
        got = [c.answer(stream).headers[":status"] for stream in bad]
        assert got == ["405", "415", "400"]
        large = c.headers(RANGE, extra=[(f"x-{i}", "y" * 2000) for i in range(7)], end=True,
                          end_headers=True)
        assert c.answer(large).status[0] in (2, 13)     # no message, but the headers are fine
        for extra in ([("X-Upper", "a")], [("connection", "close")], [(":path", "/again")]):
            assert c.answer(c.headers(RANGE, end=True, extra=extra)).status == ("reset", 1)
        good = c.call(RANGE, message(api.RangeRequest(key=b"alive").SerializeToString()))
        assert c.answer(good).status == (0, "")
        # DATA behind the end of its stream is the end of the connection, or of nothing.
        c.data(good, b"late")
        c.send(raw_frame(6, 0, 0, b"12345678"))
        while c.receive() and not c.pongs:
            pass


# --- floods ---

FLOODS = {
    "ping": raw_frame(6, 0, 0, b"12345678"),
    "settings": raw_frame(4, 0, 0),
    "empty data": raw_frame(0, 0, 1),
    "trailers without end": raw_frame(1, 4, 1, b"\x82"),
    "priority": raw_frame(2, 0, 9, b"\0\0\0\7\1"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_control_flood(server, name):
    before = server.stat("ended_flood")
    with connect(server) as c:
        c.headers(WATCH)
        for _ in range(2000):
            if not c.send(FLOODS[name] * 100):
                break
        server.check_serves()
        assert c.wait_end() in (ENHANCE_YOUR_CALM, None)
    wait_until("it is counted", lambda: server.stat("ended_flood") == before + 1)


def test_rapid_reset(server):
    before = server.stat("ended_flood")
    with connect(server) as c:
        for _ in range(400):
            said = b""
            for _ in range(100):
                said += frames.HeadersFrame(c.next_id, c.header_block(WATCH), flags=["END_HEADERS"]).serialize()
                said += frames.RstStreamFrame(c.next_id, error_code=8).serialize()
                c.next_id += 2
            if not c.send(said):
                break
        server.check_serves()
        c.wait_end()
    wait_until("it is counted", lambda: server.stat("ended_flood") == before + 1)


def test_stream_flood(server):
    """More calls than one connection may have, never finished."""
    for _ in range(3):
        with connect(server) as c:
            for _ in range(MAX_STREAMS + 500):
                if c.closed:
                    break
                c.headers(WATCH)
            server.check_serves()
            assert server.stat("streams") <= MAX_STREAMS + 1


def test_hpack_bomb(server):
    """A few bytes on the wire name an entry of the table again and again."""
    before = server.stat("ended_flood")
    with connect(server) as c:
        c.headers(RANGE, extra=[("x-l", "y" * 3000)], end=True)
        for _ in range(200):
            c.headers(RANGE, extra=[("x-l", "y" * 3000)] * 2000, end=True)
            if c.closed:
                break
        c.wait_end()
    wait_until("it is counted", lambda: server.stat("ended_flood") > before)


def test_endless_headers(server):
    before = server.stat("ended_flood")
    with connect(server) as c:
        c.headers(RANGE, end_headers=False)
        for _ in range(100000):
            if not c.send(raw_frame(9, 0, 1, b"")):
                break
        c.wait_end()
    with connect(server) as c:
        block = c.header_block(RANGE, extra=[(f"x-{i}", "z" * 500) for i in range(2000)])
        c.send(raw_frame(1, 1, 1, block[:16384]))
        for at in range(16384, len(block), 16384):
            c.send(raw_frame(9, 0, 1, block[at:at + 16384]))
        c.wait_end()
    wait_until("both are counted", lambda: server.stat("ended_flood") == before + 2)


def test_window_games(server):
    """Windows of nothing, of one byte, of everything, changed all the time."""
    server.client.put(b"large", b"x" * 100000)
    request = message(api.RangeRequest(key=b"large").SerializeToString())
    with connect(server, settings={frames.SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as c:
        streams = [c.call(RANGE, request) for _ in range(50)]
        for i in range(500):
            c.window(streams[i % 50], 1)
        for size in [0x7FFF0000, 0, 1, 65535, 0] * 10:
            c.send(frames.SettingsFrame(0, settings={4: size}))
        server.check_serves()
        c.send(frames.SettingsFrame(0, settings={4: 1 << 20}))
        c.window(0, 1 << 30)
        for stream in streams:
            answer = c.answer(stream)
            assert answer.status == (0, "")
            assert api.RangeResponse.FromString(answer.data[5:]).kvs[0].value == b"x" * 100000


# --- clients that hold on ---

def test_slow_readers(server):
    """Large answers to clients that take nothing: bounded, and others are served meanwhile."""
    for i in range(20):
        server.client.put(b"slow/%d" % i, b"v" * 1000000)
    before = server.memory()
    request = message(api.RangeRequest(key=b"slow/", range_end=b"slow0").SerializeToString())
    with ExitStack() as stack:
        for kind in range(10):
            # Half of them give a window and do not read the socket, the others give none.
            c = stack.enter_context(connect(server, receive_buffer=4096,
                                            settings={4: 0x7FFFFFFF if kind % 2 else 100}))
            c.window(0, 0x7FFF0000)
            for _ in range(50):
                c.call(RANGE, request)
        for _ in range(20):
            server.check_serves()
        assert server.memory() < before + (100 << 20)
        # One of them begins to read after all.
        taken = 0
        while taken < 30 << 20:
            taken += len(c.sock.recv(1 << 20))
    server.client.delete(b"slow/", b"slow0")


def test_half_closed_streams(server):
    with connect(server) as c:
        watches = [c.headers(WATCH, end=True) for _ in range(500)]
        nothing = [c.headers(RANGE, end=True) for _ in range(500)]
        for stream in nothing:
            assert c.answer(stream).status[0] in (2, 13)
        server.check_serves()
        assert server.stat("calls") > 1000
        for stream in watches[:100]:
            c.reset(stream)
        server.check_serves()


def test_unfinished_messages(server):
    """Messages that claim much and send half of it, on many calls: bounded for the connection."""
    before = server.memory(), server.stat("refused_unfinished")
    with connect(server) as c:
        streams = [c.headers(PUT) for _ in range(200)]
        for stream in streams:
            c.window(0, 1 << 20)
            c.data(stream, message(b"", length=1500000), end=False)
        for _ in range(64):
            for stream in streams:
                c.data(stream, b"x" * 10000, end=False)
        server.check_serves()
        assert server.memory() < before[0] + (200 << 20)
        wait_until("some are refused", lambda: server.stat("refused_unfinished") > before[1])
        refused = next(s for s in streams if c.receive() and c.answers[s].over)
        assert c.answers[refused].status[0] == 8


def test_too_many_connections(server):
    before = server.stat("over_max_connections")
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 50):
            stack.enter_context(socket.create_connection(server.endpoint.split(":")))
        wait_until("some are closed", lambda: server.stat("over_max_connections") >= before + 50)
        server.client.put(b"alive", b"1")
    wait_until("they are gone", lambda: server.stat("connections") == 1)


def test_silent_connections(server):
    """Connections that say nothing, or only begin to: closed after 20 s, not before."""
    before = server.stat("ended_idle")
    begun = time.monotonic()
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server, preface=False, timeout=30)) for _ in range(60)]
        for c in held[20:40]:
            c.send(PREFACE[:10])
        for c in held[40:]:
            c.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        server.check_serves()
        for c in held:
            c.wait_end()
        assert 19 < time.monotonic() - begun < 29
    wait_until("they are counted", lambda: server.stat("ended_idle") == before + 60)


def test_pipelined_plain_requests(server):
    """Requests of HTTP/1.1 far ahead of their answers, which nobody reads at first."""
    with connect(server, preface=False) as c:
        c.sock.setblocking(False)
        said = 0
        try:
            while said < 100 << 20:
                said += c.sock.send(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        except BlockingIOError:
            pass
        assert said < 50 << 20
        server.check_serves()
        c.sock.setblocking(True)
        assert c.sock.recv(15) == b"HTTP/1.1 200 OK"


# --- messages, the same on etcd ---

@pytest.fixture(scope="module", params=kinds())
def any_server(request):
    s = serve(request.param)
    yield s
    s.close()


PUT_LARGE = api.PutRequest(key=b"k", value=b"v" * 1600000)
MALFORMED = {
    "cut prefix": (RANGE, b"\0\0\0", 2, "unexpected EOF"),
    "cut message": (RANGE, message(b"\x0a\x03fo", length=20), 2, "unexpected EOF"),
    "compressed": (RANGE, message(b"x", 1), 13,
                   "grpc: compressed flag set with identity or empty encoding"),
    "flag": (RANGE, message(b"x", 7), 13, "grpc: received unexpected payload format 7"),
    "over grpc's limit": (PUT, message(b"", length=3 << 20), 8,
                          "grpc: received message larger than max (3145728 vs. 2097152)"),
    "4 GB": (PUT, message(b"", length=0xFFFFFFFF), 8,
             "grpc: received message larger than max (4294967295 vs. 2097152)"),
    "over etcd's limit": (PUT, message(PUT_LARGE.SerializeToString()), 3,
                          "etcdserver: request is too large"),
    "not protobuf": (RANGE, message(b"\xff\xff\xff"), 13,
                     "grpc: error unmarshalling request: unexpected EOF"),
    "length beyond the end": (RANGE, message(b"\x0a\x05abc"), 13,
                              "grpc: error unmarshalling request: unexpected EOF"),
    "unknown method": ("/etcdserverpb.KV/Nothing", message(b""), 12,
                       "unknown method Nothing for service etcdserverpb.KV"),
    "unknown service": ("/a.B/C", message(b""), 12, "unknown service a.B"),
    "no method": ("/a", message(b""), 8, 'malformed method name: "/a"'),
    "watch: cut message": (WATCH, message(b"\x0a\x05", length=20), 13, "unexpected EOF"),
    "watch: not protobuf": (WATCH, message(b"\xff\xff"), 13,
                            "grpc: failed to unmarshal the received message unexpected EOF"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_messages(any_server, name):
    path, said, status, text = MALFORMED[name]
    with RawH2(any_server.endpoint) as c:
        assert c.answer(c.call_paced(path, said)).status == (status, text)
        # The connection is as good as before.
        good = c.call(RANGE, message(api.RangeRequest(key=b"a").SerializeToString()))
        assert c.answer(good).status == (0, "")


def test_two_messages(any_server):
    """What follows the message of a unary call is ignored."""
    with RawH2(any_server.endpoint) as c:
        request = api.PutRequest(key=b"two", value=b"1").SerializeToString()
        again = api.PutRequest(key=b"two", value=b"2").SerializeToString()
        assert c.answer(c.call(PUT, message(request) + message(again))).status == (0, "")
        get = message(api.RangeRequest(key=b"two").SerializeToString())
        answer = c.answer(c.call(RANGE, get))
        assert api.RangeResponse.FromString(answer.data[5:]).kvs[0].value == b"1"


def test_deadline(any_server):
    with RawH2(any_server.endpoint) as c:
        stream = c.call(RANGE, message(api.RangeRequest(key=b"a").SerializeToString()),
                        extra=[("grpc-timeout", "0m")])
        status, text = c.answer(stream).status
        if any_server.kind == "etcd" and status == 0:
            return  # it was done before anybody looked at the clock
        assert status in (2, 4) and text == "context deadline exceeded"      # etcd says either
