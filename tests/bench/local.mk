# SPDX-License-Identifier: PostgreSQL
# The figures: `make bench` starts a suite of its own and runs every scenario.
EXTRA_PROGRAMS += tests/bench/bench_mqtt
tests_bench_bench_mqtt_SOURCES = tests/bench/bench_mqtt.c
tests_bench_bench_mqtt_LDADD = brokerd/libbrokerd.a $(PG_LIBS)

# By hand: tests/bench/bench_watch_store
EXTRA_PROGRAMS += tests/bench/bench_watch_store
tests_bench_bench_watch_store_SOURCES = tests/bench/bench_watch_store.c
tests_bench_bench_watch_store_LDADD = watchd/libwatchd.a $(WATCH_LIBS)

# By hand: FSYNC=on tests/helpers/with-postgres tests/bench/bench_engine
EXTRA_PROGRAMS += tests/bench/bench_engine
tests_bench_bench_engine_SOURCES = tests/bench/bench_engine.c
tests_bench_bench_engine_LDADD = watchd/libwatchd.a $(WATCH_LIBS)

# By hand: tests/bench/bench_h2
EXTRA_PROGRAMS += tests/bench/bench_h2
tests_bench_bench_h2_SOURCES = tests/bench/bench_h2.c
tests_bench_bench_h2_LDADD = watchd/libwatchd.a $(BASE_LIBS) $(NGHTTP2_LIBS)

# By hand: tests/bench/bench_publish
EXTRA_PROGRAMS += tests/bench/bench_publish
tests_bench_bench_publish_SOURCES = tests/bench/bench_publish.c
tests_bench_bench_publish_LDADD = walstreamd/libwalstreamd.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS) \
	-lpthread

# By hand: tests/helpers/with-postgres -p tests/bench/bench_receive
EXTRA_PROGRAMS += tests/bench/bench_receive
tests_bench_bench_receive_SOURCES = tests/bench/bench_receive.c tests/unit/helper_tls.h
tests_bench_bench_receive_LDADD = $(PGWS_LIBS)

.PHONY: bench
bench: all tests/bench/bench_mqtt$(EXEEXT)
	$(MAKE) $(AM_MAKEFLAGS) check-system SYSTEM_TESTS=tests/bench/bench_suite.py SYSTEM_RESULT=bench.xml \
		PYTEST_FLAGS="-s -p no:warnings"

EXTRA_DIST += tests/bench/bench_suite.py
