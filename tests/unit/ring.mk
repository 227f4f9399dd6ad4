# SPDX-License-Identifier: PostgreSQL
# Unit tests: ring
check_PROGRAMS += tests/unit/test_ring
TESTS += tests/unit/test_ring
tests_unit_test_ring_SOURCES = tests/unit/test_ring.c
tests_unit_test_ring_LDADD = $(RING_LIBS) $(BASE_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_ring_reader
TESTS += tests/unit/test_ring_reader
tests_unit_test_ring_reader_SOURCES = tests/unit/test_ring_reader.c
tests_unit_test_ring_reader_LDADD = $(RING_LIBS) $(BASE_LIBS) $(UNIT_LIBS)
