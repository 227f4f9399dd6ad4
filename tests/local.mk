# SPDX-License-Identifier: PostgreSQL
# Rungs 1 to 3 (cmocka) run by `make check`, the fuzz targets replay their seeds there too; rung 4 and
# 5 (system tests, pytest) by `make check-system`; long runs by `make check-long` and its parts.
FUZZERS =
# Programs that system tests need and nobody installs.
SYSTEM_HELPERS =
UNIT_LIBS = $(CMOCKA_LIBS)
if WITH_FUZZER
FUZZ_MAIN =
FUZZLINK = $(AM_LDFLAGS) -fsanitize=fuzzer
else
FUZZ_MAIN = tests/fuzz/replay.c
FUZZLINK = $(AM_LDFLAGS)
endif

# A program whose name ends in .pg runs with a PostgreSQL of its own, and is skipped without one.
TEST_EXTENSIONS = .pg
PG_LOG_COMPILER = $(srcdir)/tests/helpers/with-postgres
AM_PG_LOG_FLAGS = -p
EXTRA_DIST += tests/helpers/with-postgres

# Figures, by hand: tests/helpers/with-postgres tests/bench/bench_batch
EXTRA_PROGRAMS += tests/bench/bench_batch
tests_bench_bench_batch_SOURCES = tests/bench/bench_batch.c
tests_bench_bench_batch_LDADD = $(PG_LIBS)

if WITH_TESTS
include tests/unit/base.mk
include tests/unit/ipc.mk
include tests/unit/pg.mk
include tests/unit/pgctl.mk
include tests/unit/ring.mk
include tests/unit/walstream.mk
include tests/unit/broker.mk
include tests/unit/watch.mk
include tests/unit/supervisor.mk
endif
include tests/fuzz/base.mk
include tests/fuzz/ipc.mk
include tests/fuzz/pg.mk
include tests/fuzz/ring.mk
include tests/fuzz/walstream.mk
include tests/fuzz/broker.mk
include tests/fuzz/watch.mk
include tests/fuzz/supervisor.mk

check_PROGRAMS += $(FUZZERS)
TESTS += $(FUZZERS)
AM_TESTS_ENVIRONMENT = HOWDAH_SRCDIR='$(abs_top_srcdir)'; HOWDAH_BUILDDIR='$(abs_top_builddir)'; \
	export HOWDAH_SRCDIR HOWDAH_BUILDDIR;

# Every fuzz target in turn, FUZZ_SECONDS each; configure with CC=clang --with-fuzzer
# --with-sanitizer=address,undefined. New inputs go to the build tree, findings stop the run.
FUZZ_SECONDS = 60
.PHONY: fuzz
fuzz: $(FUZZERS)
	@set -e; for p in $(FUZZERS); do n=$${p##*/fuzz_}; mkdir -p fuzz-found/$$n; \
		echo "fuzz $$n $(FUZZ_SECONDS) s"; \
		./$$p -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -timeout=10 -rss_limit_mb=2048 \
			-artifact_prefix=fuzz-found/$$n- fuzz-found/$$n $(srcdir)/tests/fuzz/corpus/$$n \
			>fuzz-found/$$n.log 2>&1 || { tail -40 fuzz-found/$$n.log; exit 1; }; \
		grep -E 'stat::number_of_executed_units' fuzz-found/$$n.log; done

EXTRA_DIST += tests/README.md

# Rungs 4 and 5: the real programs, staged as an installation, against real servers and clients.
SYSTEM_TESTS = tests/system
SYSTEM_RESULT = system.xml
PYTEST_FLAGS =
.PHONY: check-system
check-system: all $(SYSTEM_HELPERS)
	@stage=$$(mktemp -d /tmp/howdah-stage.XXXXXX); chmod 755 $$stage; \
	trap 'rm -rf '$$stage EXIT; \
	$(MAKE) $(AM_MAKEFLAGS) install DESTDIR=$$stage >$$stage/install.log 2>&1 || \
		{ tail -20 $$stage/install.log; exit 1; }; \
	HOWDAH_SBIN=$$stage$(sbindir) HOWDAH_BIN=$$stage$(bindir) HOWDAH_LIBEXEC=$$stage$(pkglibexecdir) \
	HOWDAH_STAGE=$$stage HOWDAH_LIB=$$stage$(libdir) HOWDAH_DOC=$$stage$(docdir) \
	HOWDAH_DATA=$$stage$(pkgdatadir) HOWDAH_SRCDIR=$(abs_top_srcdir) HOWDAH_BUILDDIR=$(abs_top_builddir) \
	PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -m pytest -p no:cacheprovider -q --tb=short \
		--junitxml=$(SYSTEM_RESULT) --rootdir=$(srcdir)/tests/system $(PYTEST_FLAGS) \
		$(addprefix $(srcdir)/,$(SYSTEM_TESTS))

# The same on PostgreSQL 14, 16, 17 and 18 (npm's binaries): the unit tests that need a server, then
# the system tests MATRIX_TESTS.
MATRIX_DIR = /var/tmp/howdah-matrix
MATRIX_TESTS = tests/system/test_changes.py tests/system/test_publish.py tests/system/test_faults.py \
	tests/system/test_wal_exact.py tests/system/test_failover.py tests/system/test_guard.py \
	tests/system/test_pgctl_wal.py tests/system/test_examples.py tests/system/test_wal_storm.py
.PHONY: check-matrix check-server
check-matrix: all
	$(srcdir)/tests/helpers/matrix $(MATRIX_DIR) $(MAKE) $(AM_MAKEFLAGS) check-server
check-server: all
	$(MAKE) $(AM_MAKEFLAGS) check TESTS="$$(printf '%s ' $(TESTS) | tr ' ' '\n' | grep '\.pg$$' | tr '\n' ' ')"
	$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS="$(MATRIX_TESTS)"

# The same random calls to etcd and to watchd, for half an hour.
WATCH_DIFF_SECONDS = 1800
.PHONY: check-watch-diff
check-watch-diff: all
	HOWDAH_WATCH_DIFF_SECONDS=$(WATCH_DIFF_SECONDS) \
		$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/system/test_watch_diff.py PYTEST_FLAGS=-s

# Three storms of ten minutes, the largest values, half an hour beside etcd, then the matrix.
.PHONY: check-long
check-long: all
	HOWDAH_STORM_ROWS=1000000 HOWDAH_STORM_SECONDS=600 HOWDAH_STORM_KILLS=150 \
		$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/system/test_storm.py PYTEST_FLAGS=-s
	HOWDAH_WAL_STORM_SECONDS=600 \
		$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/system/test_wal_storm.py PYTEST_FLAGS=-s
	HOWDAH_LARGE_VALUES=1 \
		$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/system/test_large_values.py
	HOWDAH_WATCH_STORM_SECONDS=600 \
		$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/system/test_watch_faults.py PYTEST_FLAGS=-s
	$(MAKE) $(AM_MAKEFLAGS) check-watch-diff
	$(MAKE) $(AM_MAKEFLAGS) check-matrix

# quickstart on a machine that has nothing yet (root, debootstrap).
FRESH_DIR = /var/tmp/howdah-fresh
.PHONY: check-fresh
check-fresh:
	$(srcdir)/tests/helpers/fresh-machine $(FRESH_DIR)

include tests/bench/local.mk

EXTRA_DIST += \
	tests/helpers/fresh-machine \
	tests/helpers/matrix \
	tests/helpers/junit_count.py \
	tests/system/conftest.py \
	tests/system/etcd.py \
	tests/system/linear.py \
	tests/system/pgoutput.py \
	tests/system/proxy.py \
	tests/system/rawh2.py \
	tests/system/rawmqtt.py \
	tests/system/suite.py \
	tests/system/test_bench.py \
	tests/system/test_changes.py \
	tests/system/test_examples.py \
	tests/system/test_failover.py \
	tests/system/test_faults.py \
	tests/system/test_guard.py \
	tests/system/test_large_values.py \
	tests/system/test_mapping_sql.py \
	tests/system/test_mqtt_protocol.py \
	tests/system/test_pgctl.py \
	tests/system/test_pgctl_wal.py \
	tests/system/test_postgres_worker.py \
	tests/system/test_publish.py \
	tests/system/test_storm.py \
	tests/system/test_wal_exact.py \
	tests/system/test_wal_storm.py \
	tests/system/test_watch_diff.py \
	tests/system/test_watch_etcdctl.py \
	tests/system/test_watch_faults.py \
	tests/system/test_watch_hostile.py \
	tests/system/test_watch_large.py \
	tests/system/test_watch_linear.py \
	tests/system/test_watch_nodes.py \
	tests/system/test_watch_semantics.py \
	tests/system/test_watch_services.py \
	tests/system/watch_calls.py \
	tests/system/watch_check.py \
	# end
