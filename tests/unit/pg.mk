# SPDX-License-Identifier: PostgreSQL
# Unit tests: pg. Those that end in .pg need a server: see PG_LOG_COMPILER in tests/local.mk.
check_PROGRAMS += tests/unit/test_pgresolve tests/unit/test_pgconn.pg tests/unit/test_batch.pg \
	tests/unit/test_schema.pg tests/unit/test_pgconf
TESTS += tests/unit/test_pgresolve tests/unit/test_pgconn.pg tests/unit/test_batch.pg \
	tests/unit/test_schema.pg tests/unit/test_pgconf

tests_unit_test_pgresolve_SOURCES = tests/unit/test_pgresolve.c
tests_unit_test_pgresolve_LDADD = $(PG_LIBS) $(UNIT_LIBS)

tests_unit_test_pgconf_SOURCES = tests/unit/test_pgconf.c
tests_unit_test_pgconf_LDADD = $(PG_LIBS) $(UNIT_LIBS)

tests_unit_test_pgconn_pg_SOURCES = \
	tests/unit/pg_testing.c \
	tests/unit/pg_testing.h \
	tests/unit/test_pgconn.c \
	# end
tests_unit_test_pgconn_pg_LDADD = $(PG_LIBS) $(UNIT_LIBS)

tests_unit_test_batch_pg_SOURCES = \
	tests/unit/pg_testing.c \
	tests/unit/pg_testing.h \
	tests/unit/test_batch.c \
	# end
tests_unit_test_batch_pg_LDADD = $(PG_LIBS) $(UNIT_LIBS)

tests_unit_test_schema_pg_SOURCES = \
	tests/unit/pg_testing.c \
	tests/unit/pg_testing.h \
	tests/unit/test_schema.c \
	# end
tests_unit_test_schema_pg_LDADD = $(PG_LIBS) $(UNIT_LIBS)
