# SPDX-License-Identifier: PostgreSQL
# Unit tests: watchd
WATCH_TEST_LIBS = watchd/libwatchd.a $(WATCH_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_watchd_conf
TESTS += tests/unit/test_watchd_conf
tests_unit_test_watchd_conf_SOURCES = tests/unit/test_watchd_conf.c
tests_unit_test_watchd_conf_LDADD = $(WATCH_TEST_LIBS)

check_PROGRAMS += tests/unit/test_watch_interval
TESTS += tests/unit/test_watch_interval
tests_unit_test_watch_interval_SOURCES = tests/unit/test_watch_interval.c
tests_unit_test_watch_interval_LDADD = $(WATCH_TEST_LIBS)

ENGINE_TESTING = tests/unit/engine_testing.c tests/unit/engine_testing.h tests/unit/pg_testing.c \
	tests/unit/pg_testing.h
check_PROGRAMS += tests/unit/test_engine.pg
TESTS += tests/unit/test_engine.pg
tests_unit_test_engine_pg_SOURCES = $(ENGINE_TESTING) tests/unit/test_engine.c
tests_unit_test_engine_pg_LDADD = $(WATCH_TEST_LIBS)

check_PROGRAMS += tests/unit/test_engine_faults.pg
TESTS += tests/unit/test_engine_faults.pg
tests_unit_test_engine_faults_pg_SOURCES = $(ENGINE_TESTING) tests/unit/test_engine_faults.c
tests_unit_test_engine_faults_pg_LDADD = $(WATCH_TEST_LIBS)
check_PROGRAMS += tests/unit/test_engine_aux.pg
TESTS += tests/unit/test_engine_aux.pg
tests_unit_test_engine_aux_pg_SOURCES = $(ENGINE_TESTING) tests/unit/test_engine_aux.c
tests_unit_test_engine_aux_pg_LDADD = $(WATCH_TEST_LIBS)

check_PROGRAMS += tests/unit/test_watch_watch
TESTS += tests/unit/test_watch_watch
WATCH_MODEL = tests/unit/watch_model.c tests/unit/watch_model.h tests/unit/watch_testing.c \
	tests/unit/watch_testing.h
tests_unit_test_watch_watch_SOURCES = tests/unit/test_watch_watch.c $(WATCH_MODEL)
tests_unit_test_watch_watch_LDADD = $(WATCH_TEST_LIBS)
check_PROGRAMS += tests/unit/test_h2 tests/unit/test_h2_limits tests/unit/test_http1
TESTS += tests/unit/test_h2 tests/unit/test_h2_limits tests/unit/test_http1
H2_HELPERS = tests/unit/helper_h2.h tests/unit/helper_h2_server.h
tests_unit_test_h2_SOURCES = tests/unit/test_h2.c $(H2_HELPERS)
tests_unit_test_h2_LDADD = $(WATCH_TEST_LIBS)
tests_unit_test_h2_limits_SOURCES = tests/unit/test_h2_limits.c $(H2_HELPERS)
tests_unit_test_h2_limits_LDADD = $(WATCH_TEST_LIBS)
tests_unit_test_http1_SOURCES = tests/unit/test_http1.c
tests_unit_test_http1_LDADD = watchd/libwatchd.a $(BASE_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_watch_lease.pg
TESTS += tests/unit/test_watch_lease.pg
tests_unit_test_watch_lease_pg_SOURCES = $(ENGINE_TESTING) tests/unit/test_watch_lease.c
tests_unit_test_watch_lease_pg_LDADD = $(WATCH_TEST_LIBS)

check_PROGRAMS += tests/unit/test_watch_keyindex tests/unit/test_watch_kv tests/unit/test_watch_store
TESTS += tests/unit/test_watch_keyindex tests/unit/test_watch_kv tests/unit/test_watch_store
tests_unit_test_watch_keyindex_SOURCES = tests/unit/test_watch_keyindex.c
tests_unit_test_watch_keyindex_LDADD = $(WATCH_TEST_LIBS)
tests_unit_test_watch_kv_SOURCES = tests/unit/test_watch_kv.c tests/unit/kv_text.c \
	tests/unit/kv_text.h
tests_unit_test_watch_kv_LDADD = $(WATCH_TEST_LIBS)
tests_unit_test_watch_store_SOURCES = tests/unit/test_watch_store.c tests/unit/store_model.c \
	tests/unit/store_model.h
tests_unit_test_watch_store_LDADD = $(WATCH_TEST_LIBS)
