# SPDX-License-Identifier: PostgreSQL
"""The protocol by its bytes: what the broker answers to whom, every refusal with its reason code."""
import socket
import struct
import time

import pytest

from rawmqtt import text, varint

V4, V5 = 4, 5
CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 11, 13, 14


def props(data):
    return varint(len(data)) + data


def packet(first, body):
    return bytes([first]) + varint(len(body)) + body


def connect(version, client_id="c", flags=2, keepalive=0, properties=b"", rest=b"", name="MQTT"):
    return packet(0x10, text(name) + bytes([version, flags]) + struct.pack(">H", keepalive)
                  + (props(properties) if version == V5 else b"") + text(client_id) + rest)


def publish(version, topic, payload=b"", qos=0, packet_id=1, flags=0, properties=b""):
    return packet(0x30 | qos << 1 | flags, text(topic) + (struct.pack(">H", packet_id) if qos else b"")
                  + (props(properties) if version == V5 else b"") + payload)


def subscribe(version, *filters, packet_id=1, properties=b""):
    return packet(0x82, struct.pack(">H", packet_id) + (props(properties) if version == V5 else b"")
                  + b"".join(text(f) + bytes([options]) for f, options in filters))


def unsubscribe(version, *filters, packet_id=1):
    return packet(0xA2, struct.pack(">H", packet_id) + (b"\0" if version == V5 else b"")
                  + b"".join(text(f) for f in filters))


class Conn:
    """A connection that says what it is told, and hears packets as (type, flags, body)."""

    def __init__(self, port, first=b"", timeout=10):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(timeout)
        self.buffer = b""
        if first:
            self.say(first)

    def say(self, data):
        self.sock.sendall(data)
        return self

    def _need(self, n):
        while len(self.buffer) < n:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data

    def hear(self):
        self._need(2)
        length, at = 0, 1
        while True:
            self._need(at + 1)
            length |= (self.buffer[at] & 0x7F) << 7 * (at - 1)
            at += 1
            if self.buffer[at - 1] < 0x80:
                break
        self._need(at + length)
        first, body = self.buffer[0], self.buffer[at:at + length]
        self.buffer = self.buffer[at + length:]
        return first >> 4, first & 15, body

    def expect(self, kind, body=None, flags=0):
        got = self.hear()
        assert got[0] == kind and got[1] == flags, got
        assert body is None or got[2] == body, got
        return got[2]

    def expect_end(self):
        """Nothing more comes, and the server closes."""
        with pytest.raises((EOFError, ConnectionResetError)):
            got = self.hear()
            raise AssertionError(got)
        self.close()

    def expect_nothing(self):
        """A PINGREQ is answered, and nothing came before."""
        self.say(b"\xc0\0")
        self.expect(PINGRESP, b"")

    def close(self):
        self.sock.close()


@pytest.fixture
def conn(suite):
    """conn(version, **connect options) -> Conn that is connected; all are closed at the end."""
    made = []

    def make(version, *args, **kw):
        c = Conn(suite.mqtt_port, connect(version, *args, **kw))
        made.append(c)
        body = c.expect(CONNACK)
        assert body[:2] == b"\0\0", body
        return c
    yield make
    for c in made:
        c.close()


# -- CONNECT -----------------------------------------------------------------------------------

def test_connack_says_what_is_not_there(suite):
    c = Conn(suite.mqtt_port, connect(V5))
    assert c.expect(CONNACK) == b"\0\0" + props(
        b"\x21\x03\xe8\x24\x01\x25\x00\x27\x00\x10\x00\x00\x22\x00\x40\x2a\x00")
    c.close()
    c = Conn(suite.mqtt_port, connect(V4))
    assert c.expect(CONNACK) == b"\0\0"
    c.close()


def test_session_expiry_is_answered_with_zero(suite):
    c = Conn(suite.mqtt_port, connect(V5, flags=0, properties=b"\x11\0\0\0\x3c"))
    body = c.expect(CONNACK)
    assert body[:2] == b"\0\0" and body[3:8] == b"\x11\0\0\0\0"
    # What was asked for may be asked for again.
    c.say(packet(0xE0, b"\0" + props(b"\x11\0\0\0\x05"))).expect_end()


def test_clean_session_0_is_accepted_without_a_session(suite):
    for _ in range(2):
        c = Conn(suite.mqtt_port, connect(V4, "keeper", flags=0))
        c.expect(CONNACK, b"\0\0")
        c.say(subscribe(V4, ("k", 1))).expect(SUBACK, b"\0\1\1")
        c.close()


def test_assigned_client_identifiers_differ(suite):
    names = set()
    for _ in range(2):
        c = Conn(suite.mqtt_port, connect(V5, ""))
        body = c.expect(CONNACK)
        at = body.index(b"\x12")
        names.add(body[at + 3:at + 3 + body[at + 2]])
        c.close()
    assert len(names) == 2
    Conn(suite.mqtt_port, connect(V4, "")).expect(CONNACK, b"\0\0")


WILL = text("w") + text("m")
REFUSED_CONNECTS = [
    # what, bytes, answer: None: closed without a word, else CONNACK's first two bytes
    ("3.1", connect(3, name="MQIsdp"), b"\0\1"),
    ("level 3", connect(3), b"\0\1"),
    ("level 6", connect(6), b"\0\x84"),
    ("not MQTT", connect(4, name="HTTP"), None),
    ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", None),
    ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", None),
    ("first is PINGREQ", b"\xc0\0", None),
    ("reserved flag 4", connect(V4, flags=3), None),
    ("reserved flag 5", connect(V5, flags=3), b"\0\x81"),
    ("password alone 4", connect(V4, flags=0x42, rest=text("p")), None),
    ("will flags 5", connect(V5, flags=0x0A), b"\0\x81"),
    ("will QoS 3", connect(V5, flags=0x1E, rest=b"\0" + WILL), b"\0\x81"),
    ("will QoS 2 5", connect(V5, flags=0x16, rest=b"\0" + WILL), b"\0\x9b"),
    ("will QoS 2 4", connect(V4, flags=0x16, rest=WILL), None),
    ("will retain 5", connect(V5, flags=0x26, rest=b"\0" + WILL), b"\0\x9a"),
    ("will retain 4", connect(V4, flags=0x26, rest=WILL), None),
    ("will topic 5", connect(V5, flags=6, rest=b"\0" + text("a/#") + text("m")), b"\0\x90"),
    ("will topic $", connect(V5, flags=6, rest=b"\0" + text("$SYS/x") + text("m")), b"\0\x90"),
    ("no name, session 4", connect(V4, "", flags=0), b"\0\2"),
    ("long name 4", connect(V4, "x" * 1025), b"\0\2"),
    ("long name 5", connect(V5, "x" * 1025), b"\0\x85"),
    ("auth method", connect(V5, properties=b"\x15" + text("SCRAM-SHA-1")), b"\0\x8c"),
    ("auth data alone", connect(V5, properties=b"\x16" + text("x")), b"\0\x82"),
    ("receive maximum 0", connect(V5, properties=b"\x21\0\0"), b"\0\x82"),
    ("maximum packet 0", connect(V5, properties=b"\x27\0\0\0\0"), b"\0\x82"),
    ("property twice", connect(V5, properties=b"\x21\0\1\x21\0\1"), b"\0\x82"),
    ("misplaced property", connect(V5, properties=b"\x23\0\1"), b"\0\x81"),
    ("unknown property", connect(V5, properties=b"\x7f\0"), b"\0\x81"),
    ("bytes left", packet(0x10, connect(V5)[2:] + b"x"), b"\0\x81"),
    ("bad UTF-8", packet(0x10, text("MQTT") + b"\5\2\0\0\0\0\1\xff"), b"\0\x81"),
    ("too large 5", packet(0x10, text("MQTT") + b"\5\2\0\0\0" + b"x" * 1100000)[:4000], b"\0\x95"),
    ("too large 4", packet(0x10, text("MQTT") + b"\4\2\0\0" + b"x" * 1100000)[:4000], None),
    ("bad length", b"\x10\xff\xff\xff\xff\x7f", None),
]


@pytest.mark.parametrize("what,data,answer", REFUSED_CONNECTS, ids=[r[0] for r in REFUSED_CONNECTS])
def test_refused_connect(suite, what, data, answer):
    c = Conn(suite.mqtt_port, data)
    if answer is not None:
        body = c.expect(CONNACK)
        assert body[:2] == answer
        assert (len(body) > 3 and body[3] == 0x1F) == (answer[1] >= 0x80), "a reason string in 5.0 only"
    c.expect_end()


# -- refusals in a session ---------------------------------------------------------------------

ALIAS = b"\x23\0\1"
REFUSED = [
    # what, version, bytes, reason code in 5.0 (3.1.1: closed without a word)
    ("second CONNECT", V5, connect(V5), 0x82),
    ("second CONNECT", V4, connect(V4), None),
    ("type 0", V5, b"\0\0", 0x81),
    ("flags", V5, b"\xc1\0", 0x81),
    ("length of five bytes", V5, b"\x30\xff\xff\xff\xff\x01", 0x81),
    ("length not minimal", V4, b"\xc0\x80\0", None),
    ("QoS 3", V5, b"\x36\x06\0\1a\0\1\0", 0x81),
    ("QoS 3", V4, b"\x36\x05\0\1a\0\1", None),
    ("QoS 2", V5, publish(V5, "a", qos=2), 0x9B),
    ("QoS 2", V4, publish(V4, "a", qos=2), None),
    ("retain", V5, publish(V5, "a", flags=1), 0x9A),
    ("retain", V4, publish(V4, "a", flags=1), None),
    ("packet id 0", V5, publish(V5, "a", qos=1, packet_id=0), 0x82),
    ("wildcard in name", V5, publish(V5, "a/+"), 0x90),
    ("wildcard in name", V4, publish(V4, "a/#"), None),
    ("$ name", V5, publish(V5, "$SYS/x"), 0x90),
    ("long name", V5, publish(V5, "x" * 4097), 0x90),
    ("deep name", V5, publish(V5, "x/" * 128), 0x90),
    ("no topic", V5, publish(V5, ""), 0x82),
    ("U+0000", V5, publish(V5, "a\0b"), 0x81),
    ("not UTF-8", V4, b"\x30\x05\0\3\xed\xa0\x80", None),
    ("alias 0", V5, publish(V5, "a", properties=b"\x23\0\0"), 0x94),
    ("alias too high", V5, publish(V5, "a", properties=b"\x23\0\x41"), 0x94),
    ("alias not set", V5, publish(V5, "", properties=ALIAS), 0x82),
    ("subscription id in PUBLISH", V5, publish(V5, "a", properties=b"\x0b\1"), 0x82),
    ("misplaced property", V5, publish(V5, "a", properties=b"\x21\0\1"), 0x81),
    ("unknown property", V5, publish(V5, "a", properties=b"\x7e\0"), 0x81),
    ("property twice", V5, publish(V5, "a", properties=b"\1\0\1\0"), 0x82),
    ("packet too large", V5, packet(0x30, b"\0\1a\0" + b"x" * 1048576)[:1000], 0x95),
    ("packet too large", V4, packet(0x30, b"\0\1a" + b"x" * 1048576)[:1000], None),
    ("PUBREC", V5, b"\x50\2\0\1", 0x82),
    ("PUBREL", V5, b"\x62\2\0\1", 0x82),
    ("PUBCOMP", V4, b"\x70\2\0\1", None),
    ("PUBACK code", V5, b"\x40\3\0\1\x11", 0x82),
    ("CONNACK", V5, b"\x20\3\0\0\0", 0x82),
    ("SUBACK", V5, b"\x90\4\0\1\0\0", 0x82),
    ("UNSUBACK", V4, b"\xb0\2\0\1", None),
    ("PINGRESP", V5, b"\xd0\0", 0x82),
    ("AUTH", V5, b"\xf0\0", 0x82),
    ("AUTH", V4, b"\xf0\0", None),
    ("no filter", V5, packet(0x82, b"\0\1\0"), 0x82),
    ("subscribe QoS 3", V5, subscribe(V5, ("a", 3)), 0x82),
    ("subscribe QoS 3", V4, subscribe(V4, ("a", 3)), None),
    ("subscribe reserved bits", V5, subscribe(V5, ("a", 0x40)), 0x81),
    ("retain handling 3", V5, subscribe(V5, ("a", 0x30)), 0x82),
    ("no local on shared", V5, subscribe(V5, ("$share/g/a", 5)), 0x82),
    ("subscription id 0", V5, subscribe(V5, ("a", 1), properties=b"\x0b\0"), 0x82),
    ("subscribe id 0", V5, subscribe(V5, ("a", 1), packet_id=0), 0x82),
    ("DISCONNECT sets expiry", V5, packet(0xE0, b"\0" + props(b"\x11\0\0\0\1")), 0x82),
    ("DISCONNECT code", V5, b"\xe0\1\x10", 0x82),
]


@pytest.mark.parametrize("what,version,data,code", REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED])
def test_refused(conn, what, version, data, code):
    c = conn(version)
    c.say(data)
    if code is not None:
        body = c.expect(DISCONNECT)
        assert body[0] == code
        assert body[2] == 0x1F, "a reason string"
    c.expect_end()


def test_every_refusal_is_counted(suite, conn):
    before = suite.stat("brokerd", "mqtt_ended_qos")
    conn(V5).say(publish(V5, "a", qos=2)).expect(DISCONNECT)
    conn(V4).say(publish(V4, "a", qos=2)).expect_end()
    deadline = time.monotonic() + 10
    while suite.stat("brokerd", "mqtt_ended_qos") < before + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- SUBSCRIBE, UNSUBSCRIBE --------------------------------------------------------------------

def test_suback_codes(conn):
    c = conn(V5)
    c.say(subscribe(V5, ("a/+", 0), ("b/#", 1), ("c", 2), ("a#", 1), ("", 1), ("$share/g/x", 1),
                    ("$SYS/#", 0)))
    c.expect(SUBACK, b"\0\1\0" + bytes([0, 1, 1, 0x8F, 0x8F, 0x9E, 0]))
    c = conn(V4)
    c.say(subscribe(V4, ("a/+", 0), ("b/#", 1), ("c", 2), ("a#", 1), ("$share/g/x", 1)))
    c.expect(SUBACK, b"\0\1" + bytes([0, 1, 1, 0x80, 0x80]))


def test_subscription_limit(conn):
    c = conn(V5)
    c.say(subscribe(V5, *[(f"s/{i}", 0) for i in range(1001)]))
    assert c.expect(SUBACK)[3:] == bytes(1000) + b"\x97"
    c.say(subscribe(V5, ("s/7", 1))).expect(SUBACK, b"\0\1\0\1")  # one that is there may change


def test_unsuback_codes(conn):
    c = conn(V5)
    c.say(subscribe(V5, ("a", 0))).expect(SUBACK)
    c.say(unsubscribe(V5, "a", "a", "b#")).expect(UNSUBACK, b"\0\1\0\0\x11\x8f")
    c = conn(V4)
    c.say(unsubscribe(V4, "a", packet_id=7)).expect(UNSUBACK, b"\0\7")


def test_overlapping_subscriptions_give_one_message(conn):
    sub, pub = conn(V5, "sub"), conn(V4, "pub")
    sub.say(subscribe(V5, ("o/+", 0), properties=b"\x0b\1")).expect(SUBACK)
    sub.say(subscribe(V5, ("o/#", 1), properties=b"\x0b\xc8\1")).expect(SUBACK)
    pub.say(publish(V4, "o/1", b"x", qos=1)).expect(PUBACK, b"\0\1")
    body = sub.expect(PUBLISH, flags=2)
    assert body[:5] == text("o/1") and body[-1:] == b"x"
    assert body[7:-1] in (b"\5\x0b\1\x0b\xc8\1", b"\5\x0b\xc8\1\x0b\1")
    sub.say(b"\x40\2" + body[5:7]).expect_nothing()


def test_no_local(conn):
    c, other = conn(V5, "nl"), conn(V5, "nl2")
    c.say(subscribe(V5, ("nl/#", 4))).expect(SUBACK, b"\0\1\0\0")
    c.say(publish(V5, "nl/a", b"mine")).expect_nothing()
    c.say(publish(V5, "nl/a", b"mine", qos=1)).expect(PUBACK, b"\0\1\x10")
    other.say(publish(V5, "nl/a", b"yours"))
    c.expect(PUBLISH, text("nl/a") + b"\0yours")


# -- PUBLISH -----------------------------------------------------------------------------------

def test_puback_says_whether_anybody_listens(conn):
    c, sub = conn(V5, "p"), conn(V4, "s")
    c.say(publish(V5, "nobody/here", qos=1, packet_id=9)).expect(PUBACK, b"\0\x09\x10")
    sub.say(subscribe(V4, ("some/body", 0))).expect(SUBACK)
    c.say(publish(V5, "some/body", qos=1, packet_id=10)).expect(PUBACK, b"\0\x0a")
    sub.expect(PUBLISH, text("some/body"))


def test_pubacks_come_in_order(conn):
    c = conn(V4)
    c.say(b"".join(publish(V4, "order", b"x", qos=1, packet_id=i) for i in range(1, 501)))
    assert [struct.unpack(">H", c.expect(PUBACK))[0] for _ in range(500)] == list(range(1, 501))


def test_properties_travel(conn):
    sub, pub = conn(V5, "s"), conn(V5, "p")
    sub.say(subscribe(V5, ("t/#", 1))).expect(SUBACK)
    travel = (b"\1\1" + b"\3" + text("text/plain") + b"\x08" + text("re/ply") + b"\x09" + text("id")
              + b"\x26" + text("k") + text("1") + b"\x26" + text("k") + text("2"))
    pub.say(publish(V5, "t/a", b"x", qos=1, properties=travel + ALIAS + b"\2\0\0\0\x1e"))
    pub.expect(PUBACK)
    body = sub.expect(PUBLISH, flags=2)
    assert body[7:] == props(travel + b"\2\0\0\0\x1e") + b"x"
    # The alias stands for the topic now, and can be given another.
    pub.say(publish(V5, "", b"y", properties=ALIAS))
    sub.expect(PUBLISH, text("t/a") + b"\0y")
    pub.say(publish(V5, "t/b", b"z", properties=ALIAS) + publish(V5, "", b"w", properties=ALIAS))
    sub.expect(PUBLISH, text("t/b") + b"\0z")
    sub.expect(PUBLISH, text("t/b") + b"\0w")


def test_topic_aliases_are_per_connection(conn):
    conn(V5, "a1").say(publish(V5, "x", properties=ALIAS)).expect_nothing()
    assert conn(V5, "a2").say(publish(V5, "", properties=ALIAS)).expect(DISCONNECT)[0] == 0x82


def test_maximum_packet_size_of_the_client(suite, conn):
    sub, pub = conn(V5, "small", properties=b"\x27\0\0\0\x20"), conn(V4)
    sub.say(subscribe(V5, ("m", 1))).expect(SUBACK)
    before = suite.stat("brokerd", "mqtt_dropped_too_large")
    pub.say(publish(V4, "m", b"x" * 25, qos=1)).expect(PUBACK)
    pub.say(publish(V4, "m", b"x" * 24, qos=1)).expect(PUBACK)
    assert sub.expect(PUBLISH, flags=2)[-25:] == b"\0" + b"x" * 24
    deadline = time.monotonic() + 10
    while suite.stat("brokerd", "mqtt_dropped_too_large") != before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_receive_maximum_of_the_client(conn):
    sub, pub = conn(V5, "window", properties=b"\x21\0\2"), conn(V4)
    sub.say(subscribe(V5, ("w", 1))).expect(SUBACK)
    pub.say(b"".join(publish(V4, "w", bytes([i]), qos=1, packet_id=i) for i in range(1, 6)))
    ids = []
    for i in range(1, 3):
        body = sub.expect(PUBLISH, flags=2)
        assert body[-1] == i
        ids.append(body[3:5])
    sub.expect_nothing()
    for i in range(3, 6):
        sub.say(b"\x40\2" + ids.pop(0))
        body = sub.expect(PUBLISH, flags=2)
        assert body[-1] == i
        ids.append(body[3:5])


# -- the end -----------------------------------------------------------------------------------

def test_takeover(conn):
    old = conn(V5, "same")
    new = conn(V4, "same")
    assert old.expect(DISCONNECT)[0] == 0x8E
    old.expect_end()
    newer = conn(V5, "same")
    new.expect_end()
    newer.expect_nothing()


WILL_ENDS = [
    ("closed", lambda c: c.close(), True),
    ("DISCONNECT", lambda c: c.say(b"\xe0\0"), False),
    ("DISCONNECT with will", lambda c: c.say(b"\xe0\1\4"), True),
    ("protocol error", lambda c: c.say(b"\xd0\0"), True),
]


@pytest.mark.parametrize("what,end,published", WILL_ENDS, ids=[r[0] for r in WILL_ENDS])
@pytest.mark.parametrize("qos", [0, 1])
def test_will(suite, conn, what, end, published, qos):
    sub = conn(V5, "watch")
    topic = f"will/{what}/{qos}"
    sub.say(subscribe(V5, (topic, 1))).expect(SUBACK)
    c = conn(V5, "mortal", flags=6 | qos << 3, rest=props(b"\3" + text("ct")) + text(topic) + text("bye"))
    end(c)
    if published:
        body = sub.expect(PUBLISH, flags=qos << 1)
        assert body[len(text(topic)) + 2 * qos:] == props(b"\3" + text("ct")) + b"bye"
        rows = suite.sql(f"SELECT client_id, qos FROM howdah_mqtt.message WHERE topic = '{topic}'")
        assert rows == ([("mortal", 1)] if qos else [])
    else:
        c.expect_end()
        sub.expect_nothing()


def test_keep_alive(conn):
    c = conn(V5, keepalive=1)
    begin = time.monotonic()
    assert c.expect(DISCONNECT)[0] == 0x8D
    assert 1.4 < time.monotonic() - begin < 4


def test_connect_timeout(make_suite):
    suite = make_suite(brokerd='connect_timeout = "500ms";')
    begin = time.monotonic()
    Conn(suite.mqtt_port).expect_end()
    Conn(suite.mqtt_port, connect(V4)[:5]).expect_end()
    assert time.monotonic() - begin < 8


def test_not_anonymous(make_suite):
    suite = make_suite(brokerd="allow_anonymous = false;")
    c = Conn(suite.mqtt_port, connect(V5))
    assert c.expect(CONNACK)[:2] == b"\0\x87"
    c.expect_end()
    c = Conn(suite.mqtt_port, connect(V4))
    c.expect(CONNACK, b"\0\5")
    c.expect_end()


def test_limits_from_the_configuration(make_suite):
    suite = make_suite(brokerd='max_packet = "2kB"; receive_maximum = 10; topic_alias_maximum = 0;'
                               " max_connections = 3; max_topic_levels = 2; max_subscriptions = 1;")
    c = Conn(suite.mqtt_port, connect(V5))
    assert c.expect(CONNACK) == b"\0\0" + props(
        b"\x21\x00\x0a\x24\x01\x25\x00\x27\x00\x00\x08\x00\x2a\x00")
    c.say(subscribe(V5, ("a/b/c", 1), ("a", 1), ("b", 1))).expect(SUBACK, b"\0\1\0\x8f\1\x97")
    assert c.say(publish(V5, "x", b"y" * 2048)).expect(DISCONNECT)[0] == 0x95
    c.expect_end()
    c = Conn(suite.mqtt_port, connect(V5))
    c.expect(CONNACK)
    assert c.say(publish(V5, "x", properties=ALIAS)).expect(DISCONNECT)[0] == 0x94
    c.expect_end()
    three = []
    for i in range(3):
        three.append(Conn(suite.mqtt_port, connect(V4, f"n{i}")))
        three[-1].expect(CONNACK, b"\0\0")
    Conn(suite.mqtt_port).expect_end()
    for c in three:
        c.expect_nothing()
        c.close()


def test_sessions_are_listed(suite, conn):
    c = conn(V5, "listed \"ä\"", keepalive=30)
    c.say(subscribe(V5, ("l/#", 1), ("m", 0))).expect(SUBACK)
    rows = {r["client_id"]: r for r in suite.rows("mqtt", "sessions")}
    row = rows["listed \"ä\""]
    assert row["version"] == "5.0" and row["subscriptions"] == 2 and row["keep_alive_s"] == 30
    assert row["address"].startswith("127.0.0.1:") and row["inflight"] == row["queued"] == 0
    assert abs(row["connected_since"] - time.time()) < 60


def test_stop_says_goodbye(make_suite):
    suite = make_suite()
    c = Conn(suite.mqtt_port, connect(V5))
    c.expect(CONNACK)
    suite.process.terminate()
    assert c.expect(DISCONNECT)[0] == 0x8B
    c.expect_end()
