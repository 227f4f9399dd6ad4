# SPDX-License-Identifier: PostgreSQL
"""An MQTT client that does only what it is told: for tests that misbehave, or must not acknowledge."""
import socket
import struct


def varint(n):
    out = b""
    while True:
        n, digit = n >> 7, n & 0x7F
        out += bytes([digit | (0x80 if n else 0)])
        if not n:
            return out


def text(s):
    data = s.encode()
    return struct.pack(">H", len(data)) + data


class RawClient:
    def __init__(self, port, client_id="raw", version=4, keepalive=0, connect=True, timeout=10,
                 receive_buffer=None):
        self.version = version
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self.buffer = b""
        self.packet_id = 0
        if connect:
            self.send(0x10, text("MQTT") + bytes([version, 2]) + struct.pack(">H", keepalive)
                      + (b"\0" if version == 5 else b"") + text(client_id))
            kind, body = self.receive()
            assert kind == 0x20 and body[1] == 0, (kind, body)

    def send(self, first_byte, body):
        self.sock.sendall(bytes([first_byte]) + varint(len(body)) + body)

    def _fill(self, n):
        while len(self.buffer) < n:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data

    def receive(self):
        """(first byte, body) of the next packet; EOFError when the server has closed."""
        self._fill(2)
        length, shift, used = 0, 0, 1
        while True:
            self._fill(used + 1)
            digit = self.buffer[used]
            length |= (digit & 0x7F) << shift
            shift += 7
            used += 1
            if not digit & 0x80:
                break
        self._fill(used + length)
        first, body = self.buffer[0], self.buffer[used:used + length]
        self.buffer = self.buffer[used + length:]
        return first, body

    def subscribe(self, topic, qos=1):
        self.packet_id += 1
        self.send(0x82, struct.pack(">H", self.packet_id) + (b"\0" if self.version == 5 else b"")
                  + text(topic) + bytes([qos]))
        first, body = self.receive()
        assert first == 0x90 and body[-1] == qos, (first, body)

    def receive_publish(self):
        """(topic, packet id or 0, payload) of the next packet, which must be a PUBLISH."""
        first, body = self.receive()
        assert first >> 4 == 3, first
        n = struct.unpack(">H", body[:2])[0]
        topic, rest = body[2:2 + n].decode(), body[2 + n:]
        packet_id = 0
        if first & 6:
            packet_id, rest = struct.unpack(">H", rest[:2])[0], rest[2:]
        if self.version == 5:
            rest = rest[1 + rest[0]:]  # properties of under 128 bytes
        return topic, packet_id, rest

    def puback(self, packet_id):
        self.send(0x40, struct.pack(">H", packet_id))

    def publish(self, topic, payload, packet_id):
        self.send(0x32, text(topic) + struct.pack(">H", packet_id)
                  + (b"\0" if self.version == 5 else b"") + payload)

    def closed_by_server(self):
        """Reads to the end; True if the server closed within the timeout."""
        try:
            while True:
                self.receive()
        except (EOFError, ConnectionResetError):
            return True
        except socket.timeout:
            return False

    def close(self):
        self.sock.close()
