# SPDX-License-Identifier: PostgreSQL
# Unit tests: base
BASE_TESTS = \
	tests/unit/test_buf \
	tests/unit/test_conf \
	tests/unit/test_ev \
	tests/unit/test_list \
	tests/unit/test_listener \
	tests/unit/test_log \
	tests/unit/test_mem \
	tests/unit/test_proc \
	tests/unit/test_stats \
	# end
check_PROGRAMS += $(BASE_TESTS)
TESTS += $(BASE_TESTS) tests/unit/check_tree.sh
EXTRA_DIST += tests/unit/check_tree.sh
tests_unit_test_buf_SOURCES = tests/unit/test_buf.c
tests_unit_test_buf_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_conf_SOURCES = tests/unit/test_conf.c tests/unit/helper_assert.h
tests_unit_test_conf_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_ev_SOURCES = tests/unit/test_ev.c tests/unit/helper_assert.h
tests_unit_test_ev_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_list_SOURCES = tests/unit/test_list.c
tests_unit_test_list_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_listener_SOURCES = tests/unit/test_listener.c
tests_unit_test_listener_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_log_SOURCES = tests/unit/test_log.c tests/unit/helper_assert.h
tests_unit_test_log_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_mem_SOURCES = tests/unit/test_mem.c tests/unit/helper_assert.h
tests_unit_test_mem_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_proc_SOURCES = tests/unit/test_proc.c tests/unit/helper_assert.h
tests_unit_test_proc_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_stats_SOURCES = tests/unit/test_stats.c tests/unit/helper_assert.h
tests_unit_test_stats_LDADD = $(BASE_LIBS) $(UNIT_LIBS)
