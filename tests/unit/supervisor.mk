# SPDX-License-Identifier: PostgreSQL
# Unit tests: supervisor
check_PROGRAMS += tests/unit/test_fsm
TESTS += tests/unit/test_fsm
tests_unit_test_fsm_SOURCES = tests/unit/test_fsm.c supervisor/fsm.c
tests_unit_test_fsm_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
