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
check_PROGRAMS += tests/unit/test_ring_threads
TESTS += tests/unit/test_ring_threads
tests_unit_test_ring_threads_SOURCES = tests/unit/test_ring_threads.c
tests_unit_test_ring_threads_LDADD = $(RING_LIBS) $(BASE_LIBS) $(UNIT_LIBS) -lpthread
# With its own build of the core: a place to die between every two stores of the producer.
check_PROGRAMS += tests/unit/test_ring_kill
TESTS += tests/unit/test_ring_kill
tests_unit_test_ring_kill_SOURCES = tests/unit/test_ring_kill.c common/ring/ring.c \
	common/ring/ring_crc.c
tests_unit_test_ring_kill_CPPFLAGS = $(AM_CPPFLAGS) -DRING_INJECT
tests_unit_test_ring_kill_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
