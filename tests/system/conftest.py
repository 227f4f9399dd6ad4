# SPDX-License-Identifier: PostgreSQL
"""Fixtures: a suite that a whole file shares, and makers for tests that need their own."""
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from etcd import kinds, serve  # noqa: E402
from suite import Postgres, Suite  # noqa: E402


# A shell's background job ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_figures = []


@pytest.fixture
def report():
    """report(line): a line for the end of the run's output, whatever pytest captures."""
    return _figures.append


def pytest_terminal_summary(terminalreporter):
    for line in _figures:
        terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def suite():
    """A running suite with the embedded database, shared by the tests of one file."""
    s = Suite()
    yield s
    s.close()


@pytest.fixture
def make_suite():
    """make_suite(**options) -> Suite; closed, and checked, at the end of the test."""
    made = []

    def make(**options):
        s = Suite(**options)
        made.append(s)
        return s
    yield make
    for s in made:
        if os.path.isdir(s.root):
            s.close()


@pytest.fixture
def make_postgres():
    """make_postgres(**options) -> Postgres, a separate server."""
    made = []

    def make(**options):
        p = Postgres(**options)
        made.append(p)
        return p
    yield make
    for p in made:
        p.close()


@pytest.fixture(scope="module", params=kinds())
def server(request):
    """A server of the etcd API, of each kind in turn, shared by the tests of one file."""
    s = serve(request.param)
    yield s
    s.close()


@pytest.fixture(params=kinds())
def serve_own(request):
    """serve_own(**options): a server of the etcd API for one test."""
    made = []

    def make(**options):
        made.append(serve(request.param, **options))
        return made[-1]
    yield make
    for s in made:
        s.close()
