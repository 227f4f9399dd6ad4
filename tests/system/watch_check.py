# SPDX-License-Identifier: PostgreSQL
"""
What etcd promises about watches, checked answer by answer:

* created first, canceled last, nothing after it;
* ordered: revisions rise; unique: no event twice; atomic: a revision is in one answer, unless fragments
  were asked for;
* only what was asked for: range, start revision, filters;
* bookmarks: an answer's header and a progress answer are never below what was delivered, and no event
  at or below a progress revision comes later;
* prev_kv and create_revision fit the key's history (`complete`), and nothing is missing.

A violation is a WatchError.
"""


from google.protobuf import text_format


class WatchError(AssertionError):
    pass


def require(condition, *text):
    if not condition:
        raise WatchError(" ".join(
            f"{{{text_format.MessageToString(t, as_one_line=True)}}}" if hasattr(t, "DESCRIPTOR") else str(t)
            for t in text))


class Wanted:
    """What a watcher asked for."""

    def __init__(self, key=b"", range_end=b"", start_revision=0, filters=(), prev_kv=False, fragment=False, **_):
        self.key, self.end = key or b"\0", range_end
        self.start = start_revision
        self.filters, self.prev_kv, self.fragment = tuple(filters), prev_kv, fragment

    def event(self, event):
        """The event is one of those asked for, its revision aside."""
        k = event.kv.key
        inside = k == self.key if not self.end else k >= self.key and (self.end == b"\0" or k < self.end)
        return inside and event.type not in self.filters


class WatchLog:
    """One watcher's answers. It may be resumed on another stream: see resumed()."""

    def __init__(self, wanted, name=""):
        self.wanted, self.name = wanted, name
        self.created = self.canceled = None
        self.asked = False      # the client has said that it wants no more
        self.first = None       # where it began, once created
        self.events = []
        self.last = 0           # the last revision of which all is here
        self.promised = 0       # no event at or below this may come any more
        self.in_fragment = False
        self.keys = {}          # of the last revision: key -> what happened to it last

    def take(self, answer):
        # Its id is taken until the client, too, has cancelled what a compaction cancelled.
        require(self.canceled is None or (self.asked and self.canceled.compact_revision and answer.canceled),
                self.name, "got an answer after it was canceled:", answer)
        if answer.created:
            require(self.created is None and not answer.events, self.name, "created twice or with events:", answer)
            self.created = answer
            self.wanted.start = self.wanted.start or answer.header.revision + 1
            self.first = self.first or self.wanted.start
        require(self.created is not None, self.name, "got an answer before created:", answer)
        if answer.events:
            self._events(answer)
        elif not answer.created and not answer.canceled:
            self.bookmark(answer.header.revision)
        if answer.canceled:
            require(not self.in_fragment, self.name, "was canceled between fragments")
            self.canceled = answer

    def _events(self, answer):
        # Not a word of these is old, of those that came in an answer before.
        first = answer.events[0].kv.mod_revision
        require(first > self.last or (self.in_fragment and first == self.last), self.name, "revision", first,
                "is out of order or divided; before it was", self.last)
        for event in answer.events:
            revision = event.kv.mod_revision
            require(revision > self.promised and revision >= self.wanted.start, self.name, "revision", revision,
                    "comes after a promise of", self.promised, "or before the start", self.wanted.start)
            require(revision >= self.last, self.name, "revision", revision, "comes after", self.last)
            if revision > self.last:
                self.last, self.keys = revision, {}
            # One transaction may put and delete a key.
            require(self.keys.get(event.kv.key) != event.type, self.name, "has twice", event)
            require(self.wanted.event(event), self.name, "did not ask for", event)
            self.keys[event.kv.key] = event.type
            self.events.append(event)
        require(answer.header.revision >= self.last, self.name, "header", answer.header.revision, "is below", self.last)
        require(not answer.fragment or self.wanted.fragment, self.name, "did not ask for fragments")
        self.in_fragment = answer.fragment

    def bookmark(self, revision):
        """All events up to here have been sent."""
        require(revision >= self.last, self.name, "bookmark", revision, "is below", self.last)
        self.promised = max(self.promised, revision)

    def next_start(self):
        """Where a watcher that goes on after this one begins."""
        return max(self.last, self.promised, self.wanted.start - 1) + 1

    def resumed(self):
        """The stream broke; a new watcher from next_start() carries on."""
        # A revision that came in part comes again whole.
        if self.in_fragment:
            self.events = [e for e in self.events if e.kv.mod_revision != self.last]
            self.last -= 1
        self.wanted.start = self.next_start()
        self.created = self.canceled = None
        self.in_fragment, self.keys = False, {}


class StreamLog:
    """All watchers of one stream. expect() says, in the order of the create requests, what each is."""

    def __init__(self):
        self.expected = []
        self.live = {}
        self.refused = []

    def expect(self, log):
        self.expected.append(log)
        return log

    def take(self, answer):
        if answer.created:
            require(self.expected, "a watcher was created that nobody asked for:", answer)
            log = self.expected.pop(0)
            if answer.canceled:
                log.created = log.canceled = answer
                self.refused.append(answer)
                return
            old = self.live.get(answer.watch_id)
            require(old is None or (old.canceled and (old.asked or not old.canceled.compact_revision)),
                    "watch id", answer.watch_id, "is taken")
            self.live[answer.watch_id] = log
        if answer.watch_id == -1:
            for log in self.live.values():
                if not log.canceled:
                    log.bookmark(answer.header.revision)
            return
        require(answer.watch_id in self.live, "an answer for a watcher that is not there:", answer)
        self.live[answer.watch_id].take(answer)


def facts(event):
    """An event without its prev_kv, to compare."""
    k = event.kv
    return event.type, k.key, k.mod_revision, k.create_revision, k.version, k.value, k.lease


class KeyHistory:
    """The whole truth: every event of the store in order (from a watcher of everything, or from the
    database), to which watchers are compared."""

    def __init__(self):
        self.events = []        # (event, the key before this revision)
        self.current = {}
        self.revision, self.before = 0, {}

    def take(self, event):
        k = event.kv
        if k.mod_revision != self.revision:
            self.revision, self.before = k.mod_revision, {}
        old = self.current.get(k.key)
        self.before.setdefault(k.key, old)
        if event.type == 0:
            require(k.create_revision == (old.create_revision if old else k.mod_revision)
                    and k.version == (old.version + 1 if old else 1), "create_revision or version of", event,
                    "do not follow", old)
            self.current[k.key] = k
        else:
            require(old is not None, "a deletion of what was not there:", event)
            require(not (k.create_revision or k.version or k.value or k.lease), "a deletion says too much:", event)
            del self.current[k.key]
        # What creates a key has no value before, even if the same transaction deleted the key.
        creates = event.type == 0 and k.create_revision == k.mod_revision
        self.events.append((event, None if creates else self.before[k.key]))

    def check(self, log, upto):
        """log has every event that it must have up to a revision, with the right prev_kv if it asked."""
        wanted = [(e, old) for e, old in self.events if log.wanted.event(e) and e.kv.mod_revision <= upto
                  and e.kv.mod_revision >= log.first]
        got = [e for e in log.events if e.kv.mod_revision <= upto]
        for (event, old), mine in zip(wanted, got):
            require(facts(event) == facts(mine), log.name, "has", mine, "where there is", event)
            if log.wanted.prev_kv:
                require((mine.prev_kv == old) if old else not mine.HasField("prev_kv"), log.name, "prev_kv of", mine,
                        "is not", old)
        require(len(wanted) == len(got), log.name, "has", len(got), "events of", len(wanted), "up to", upto,
                "first difference at", (wanted + got)[min(len(wanted), len(got))] if len(wanted) != len(got) else "")
