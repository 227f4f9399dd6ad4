# SPDX-License-Identifier: PostgreSQL
"""A TCP proxy whose connections a test freezes and cuts, and into which it says things of its own."""
import selectors
import socket
import threading
import time


class TcpProxy:
    """Forwards 127.0.0.1:port to a target. One thread moves the bytes."""

    def __init__(self, target_port):
        self.target = ("127.0.0.1", target_port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.wake_in, self.wake_out = socket.socketpair()
        self.selector.register(self.wake_out, selectors.EVENT_READ, None)
        self.peers = {}
        self.streaming = None
        self.frozen = False
        self.stranded = None
        self.orders = []
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    # -- from the test ------------------------------------------------------------------------------

    def _order(self, what):
        done = threading.Event()
        with self.lock:
            self.orders.append((what, done))
        self.wake_in.send(b"x")
        assert done.wait(10)

    def freeze(self):
        """Connections stay, no byte moves; new ones are accepted by nobody."""
        self._order("freeze")

    def thaw(self):
        self._order("thaw")

    def cut(self):
        """Every connection ends; new ones are welcome."""
        self._order("cut")

    def strand(self):
        """Every connection ends but the stream, which stays, silent: its host is gone, the others are not. One that
        is just beginning anew is waited for."""
        self.stranded = None
        deadline = time.monotonic() + 20
        while self.stranded is None:
            assert time.monotonic() < deadline, "no stream goes through here"
            self._order("strand")
            time.sleep(0.02)

    def say(self, data):
        """The walsender's client receives this too. The server has to be silent meanwhile, so that it is not
        in the middle of a message of its own."""
        assert self.streaming, "no stream goes through here"
        self._order(data)

    def close(self):
        self._order("close")
        self.thread.join(10)

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self):
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.wake_out:
                    if self._obey():
                        return
                elif self.frozen:
                    pass
                elif key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj in self.peers:
                    self._forward(key.fileobj)

    def _obey(self):
        """Carries out orders; True: it was the last one."""
        self.wake_out.recv(100)
        with self.lock:
            orders, self.orders = self.orders, []
        for what, done in orders:
            if what in ("freeze", "thaw"):
                self.frozen = what == "freeze"
                self._watch([self.listener, *self.peers], not self.frozen)
            elif isinstance(what, bytes):
                self.streaming.sendall(what)
            elif what == "strand":
                self._strand()
            else:
                for one in list(self.peers):
                    self._end(one)
            if what == "close":
                self.listener.close()
                self.wake_in.close()
                self.wake_out.close()
                self.selector.close()
            done.set()
            if what == "close":
                return True
        return False

    def _strand(self):
        if self.streaming is None:
            return
        self.stranded = (self.streaming, self.peers[self.streaming])
        for one in list(self.peers):
            if one not in self.stranded:
                self._end(one)
        self._watch(self.stranded, False)

    def _watch(self, sockets, wanted):
        for s in sockets:
            there = s in self.selector.get_map()
            if wanted and not there:
                self.selector.register(s, selectors.EVENT_READ, None)
            elif there and not wanted:
                self.selector.unregister(s)

    def _accept(self):
        ours, _ = self.listener.accept()
        try:
            theirs = socket.create_connection(self.target, timeout=5)
        except OSError:
            ours.close()
            return
        for a, b in ((ours, theirs), (theirs, ours)):
            a.settimeout(10)
            a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peers[a] = b
            self.selector.register(a, selectors.EVENT_READ, None)

    def _forward(self, source):
        try:
            data = source.recv(65536)
            if data:
                if b"START_REPLICATION" in data:
                    self.streaming = source
                self.peers[source].sendall(data)
                return
        except OSError:
            pass
        self._end(source)

    def _end(self, one):
        if one not in self.peers:
            return
        for s in (one, self.peers.pop(one)):
            if s is self.streaming:
                self.streaming = None
            self.peers.pop(s, None)
            self._watch([s], False)
            s.close()
