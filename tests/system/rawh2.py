# SPDX-License-Identifier: PostgreSQL
"""An HTTP/2 client that does only what it is told: for tests that misbehave. It keeps no window (but in
call_paced), sends no acknowledgement and opens streams in any state, by hyperframe's frames and hpack's
encoder."""
import socket
import struct

import hpack
from hyperframe import frame as frames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENHANCE_YOUR_CALM = 11


def message(data, flag=0, length=None):
    """One gRPC message; length: what its prefix claims."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


def raw_frame(kind, flags, stream, body=b"", length=None):
    """A frame that need not make sense."""
    n = len(body) if length is None else length
    return struct.pack(">BHBBI", n >> 16, n & 0xFFFF, kind, flags, stream) + body


class Answer:
    """What came for one stream."""

    def __init__(self):
        self.headers = {}
        self.data = b""
        self.ended = False
        self.reset = None

    @property
    def over(self):
        return self.ended or self.reset is not None

    @property
    def status(self):
        """(grpc-status, grpc-message); ("reset", code) after a reset."""
        if "grpc-status" not in self.headers and self.reset is not None:
            return "reset", int(self.reset)
        return int(self.headers.get("grpc-status", -1)), self.headers.get("grpc-message", "")


class RawH2:
    def __init__(self, endpoint, settings=None, preface=True, timeout=10, receive_buffer=None):
        host, port = endpoint.rsplit(":", 1)
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect((host, int(port)))
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.buffer = b""
        self.answers = {}
        self.goaway = None          # its error code
        self.closed = False
        self.pongs = 0
        self.windows = {0: 65535}   # what the server takes; a stream's is relative to initial
        self.initial = 65535
        self.next_id = 1
        if preface:
            self.send(PREFACE + frames.SettingsFrame(0, settings=settings or {}).serialize())

    # -- out --

    def send(self, data):
        """False: the server has closed."""
        if isinstance(data, frames.Frame):
            data = data.serialize()
        try:
            self.sock.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
            return False

    def header_block(self, path, extra=(), method="POST", content_type="application/grpc"):
        return self.encoder.encode([(":method", method), (":scheme", "http"), (":path", path),
                                    (":authority", "test"), ("te", "trailers"),
                                    ("content-type", content_type), *extra])

    def headers(self, path, end=False, stream=None, end_headers=True, **how):
        """Begins a call; its stream id."""
        if stream is None:
            stream, self.next_id = self.next_id, self.next_id + 2
        flags = ["END_STREAM"] * end + ["END_HEADERS"] * end_headers
        self.answers.setdefault(stream, Answer())
        self.send(frames.HeadersFrame(stream, self.header_block(path, **how), flags=flags))
        return stream

    def data(self, stream, data, end=True):
        return self.send(frames.DataFrame(stream, data, flags=["END_STREAM"] * end))

    def call(self, path, data, end=True, **how):
        """Headers and DATA; its stream id."""
        stream = self.headers(path, **how)
        for at in range(0, len(data), 16384):
            self.data(stream, data[at:at + 16384], end and at + 16384 >= len(data))
        if not data and end:
            self.data(stream, b"")
        return stream

    def call_paced(self, path, data):
        """As call, waiting for the server's windows."""
        stream, at = self.headers(path), 0
        while at < len(data) and not self.answers[stream].over:
            n = min(self.windows[0], self.initial + self.windows.get(stream, 0), 16384, len(data) - at)
            if n <= 0:
                self.receive()
                continue
            self.windows[0] -= n
            self.windows[stream] = self.windows.get(stream, 0) - n
            self.data(stream, data[at:at + n], at + n == len(data))
            at += n
        return stream

    def reset(self, stream, error=8):
        return self.send(frames.RstStreamFrame(stream, error_code=error))

    def window(self, stream, increment):
        return self.send(frames.WindowUpdateFrame(stream, window_increment=increment))

    # -- in --

    def _take(self, kind, flags, stream, body):
        answer = self.answers.get(stream)
        if kind in (0, 1) and answer is not None:
            if kind == 0:
                answer.data += body
            else:
                answer.headers.update(self.decoder.decode(body))
            answer.ended = answer.ended or bool(flags & 1)
        elif kind == 1:
            self.decoder.decode(body)
        elif kind == 3 and answer is not None:
            answer.reset = struct.unpack(">I", body)[0]
        elif kind == 4:
            settings = frames.SettingsFrame(0)
            settings.parse_body(memoryview(body))
            self.initial = settings.settings.get(frames.SettingsFrame.INITIAL_WINDOW_SIZE, self.initial)
        elif kind == 6 and flags & 1:
            self.pongs += 1
        elif kind == 8:
            self.windows[stream] = self.windows.get(stream, 0) + struct.unpack(">I", body)[0]
        elif kind == 7:
            self.goaway = struct.unpack(">I", body[4:8])[0]

    def receive(self):
        """What one read gives. False: the server has closed."""
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return False
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= 9:
            high, low, kind, flags, stream = struct.unpack(">BHBBI", self.buffer[at:at + 9])
            n = high << 16 | low
            if len(self.buffer) - at < 9 + n:
                break
            self._take(kind, flags, stream, self.buffer[at + 9:at + 9 + n])
            at += 9 + n
        self.buffer = self.buffer[at:]
        return True

    def wait(self, what, condition):
        """Reads until condition() holds."""
        while not condition():
            try:
                alive = self.receive()
            except socket.timeout:
                raise AssertionError(f"still not: {what}") from None
            if not alive and not condition():
                raise AssertionError(f"closed, and still not: {what}")

    def answer(self, stream):
        """The answer to a call, when it is over."""
        self.wait(f"stream {stream} is over", lambda: self.answers[stream].over)
        return self.answers[stream]

    def wait_end(self):
        """Reads until the server closes; the GOAWAY's error code, if one came."""
        try:
            while self.receive():
                pass
        except socket.timeout:
            raise AssertionError("the server did not end the connection") from None
        return self.goaway

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.close()
