# SPDX-License-Identifier: PostgreSQL
# Unit tests: supervisor
check_PROGRAMS += tests/unit/test_fsm
TESTS += tests/unit/test_fsm
tests_unit_test_fsm_SOURCES = tests/unit/test_fsm.c
tests_unit_test_fsm_LDADD = supervisor/libsupervisor.a $(BASE_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_supervisor_parts
TESTS += tests/unit/test_supervisor_parts
tests_unit_test_supervisor_parts_SOURCES = tests/unit/test_supervisor_parts.c
tests_unit_test_supervisor_parts_LDADD = supervisor/libsupervisor.a $(BASE_LIBS) $(UNIT_LIBS)

# What tests/system/test_supervisor.py puts into the place of the real workers.
check_PROGRAMS += tests/helpers/fake_worker
tests_helpers_fake_worker_SOURCES = tests/helpers/fake_worker.c
tests_helpers_fake_worker_LDADD = $(BASE_LIBS)
SYSTEM_HELPERS += tests/helpers/fake_worker
EXTRA_DIST += tests/system/test_supervisor.py
