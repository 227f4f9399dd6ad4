# SPDX-License-Identifier: PostgreSQL
# Unit tests: ipc
check_PROGRAMS += tests/unit/test_imsg tests/unit/test_ctl tests/unit/test_daemon
TESTS += tests/unit/test_imsg tests/unit/test_ctl tests/unit/test_daemon

tests_unit_test_imsg_SOURCES = tests/unit/test_imsg.c
tests_unit_test_imsg_LDADD = $(BASE_LIBS) $(UNIT_LIBS)

tests_unit_test_ctl_SOURCES = tests/unit/test_ctl.c
tests_unit_test_ctl_LDADD = $(BASE_LIBS) $(UNIT_LIBS)

tests_unit_test_daemon_SOURCES = tests/unit/test_daemon.c
tests_unit_test_daemon_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
