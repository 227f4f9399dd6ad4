# SPDX-License-Identifier: PostgreSQL
# Unit tests: pgctl
check_PROGRAMS += tests/unit/test_pgctl
TESTS += tests/unit/test_pgctl
tests_unit_test_pgctl_SOURCES = tests/unit/test_pgctl.c
tests_unit_test_pgctl_LDADD = pgctl/libpgctl.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS) $(NGHTTP2_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_tail
TESTS += tests/unit/test_tail
tests_unit_test_tail_SOURCES = tests/unit/test_tail.c
tests_unit_test_tail_LDADD = pgctl/libpgctl.a $(PGWS_LIBS) $(PG_LIBS) $(UNIT_LIBS)
