# SPDX-License-Identifier: PostgreSQL
# Unit tests: walstream
WALSTREAM_LIBS = $(PGWS_LIBS)

check_PROGRAMS += tests/unit/test_decode tests/unit/test_encode tests/unit/test_catalog
TESTS += tests/unit/test_decode tests/unit/test_encode tests/unit/test_catalog

tests_unit_test_decode_SOURCES = tests/unit/test_decode.c tests/unit/pgoutput_samples.h
tests_unit_test_decode_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

tests_unit_test_encode_SOURCES = tests/unit/test_encode.c tests/unit/helper_msg.h tests/unit/pgoutput_samples.h
tests_unit_test_encode_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

tests_unit_test_catalog_SOURCES = tests/unit/test_catalog.c tests/unit/pgoutput_samples.h
tests_unit_test_catalog_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_assemble
TESTS += tests/unit/test_assemble
tests_unit_test_assemble_SOURCES = tests/unit/test_assemble.c tests/unit/assemble_testing.h
tests_unit_test_assemble_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_capture.pg
TESTS += tests/unit/test_capture.pg
tests_unit_test_capture_pg_SOURCES = tests/unit/test_capture.c tests/unit/helper_capture.h \
	tests/unit/helper_sql.h
tests_unit_test_capture_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_assemble_random
TESTS += tests/unit/test_assemble_random
tests_unit_test_assemble_random_SOURCES = tests/unit/test_assemble_random.c tests/unit/assemble_testing.h
tests_unit_test_assemble_random_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

# The calls that touch files are wrapped, to fail or to end the process in any of them.
check_PROGRAMS += tests/unit/test_assemble_files
TESTS += tests/unit/test_assemble_files
tests_unit_test_assemble_files_SOURCES = tests/unit/test_assemble_files.c tests/unit/assemble_testing.h
tests_unit_test_assemble_files_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)
tests_unit_test_assemble_files_LDFLAGS = -Wl,--wrap=pwrite -Wl,--wrap=pwritev -Wl,--wrap=pread \
	-Wl,--wrap=fsync -Wl,--wrap=ftruncate -Wl,--wrap=renameat -Wl,--wrap=unlinkat \
	-Wl,--wrap=openat

check_PROGRAMS += tests/unit/test_assemble_server.pg
TESTS += tests/unit/test_assemble_server.pg
tests_unit_test_assemble_server_pg_SOURCES = tests/unit/test_assemble_server.c \
	tests/unit/assemble_testing.h tests/unit/helper_capture.h tests/unit/helper_sql.h
tests_unit_test_assemble_server_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_stream.pg
TESTS += tests/unit/test_stream.pg
tests_unit_test_stream_pg_SOURCES = tests/unit/test_stream.c tests/unit/helper_slots.h \
	tests/unit/helper_sql.h
tests_unit_test_stream_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_stream_commands.pg
TESTS += tests/unit/test_stream_commands.pg
tests_unit_test_stream_commands_pg_SOURCES = tests/unit/test_stream_commands.c \
	tests/unit/helper_slots.h tests/unit/helper_sql.h
tests_unit_test_stream_commands_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_consumer.pg
TESTS += tests/unit/test_consumer.pg
tests_unit_test_consumer_pg_SOURCES = tests/unit/test_consumer.c tests/unit/helper_consumer.h \
	tests/unit/helper_slots.h tests/unit/helper_sql.h
tests_unit_test_consumer_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_consumer_storm.pg
TESTS += tests/unit/test_consumer_storm.pg
tests_unit_test_consumer_storm_pg_SOURCES = tests/unit/test_consumer_storm.c \
	tests/unit/helper_consumer.h tests/unit/helper_server.h tests/unit/helper_sql.h
tests_unit_test_consumer_storm_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_consumer_lives.pg
TESTS += tests/unit/test_consumer_lives.pg
tests_unit_test_consumer_lives_pg_SOURCES = tests/unit/test_consumer_lives.c \
	tests/unit/helper_consumer.h tests/unit/helper_server.h tests/unit/helper_slots.h \
	tests/unit/helper_sql.h
tests_unit_test_consumer_lives_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_stream_tls.pg
TESTS += tests/unit/test_stream_tls.pg
tests_unit_test_stream_tls_pg_SOURCES = tests/unit/test_stream_tls.c tests/unit/helper_sql.h
tests_unit_test_stream_tls_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_walstreamd.pg
TESTS += tests/unit/test_walstreamd.pg
tests_unit_test_walstreamd_pg_SOURCES = tests/unit/test_walstreamd.c tests/unit/helper_sql.h \
	tests/unit/helper_walstreamd.h
tests_unit_test_walstreamd_pg_LDADD = $(WALSTREAM_LIBS) $(RING_LIBS) $(BASE_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_walstreamd_gaps.pg
TESTS += tests/unit/test_walstreamd_gaps.pg
tests_unit_test_walstreamd_gaps_pg_SOURCES = tests/unit/test_walstreamd_gaps.c \
	tests/unit/helper_sql.h tests/unit/helper_walstreamd.h
tests_unit_test_walstreamd_gaps_pg_LDADD = $(WALSTREAM_LIBS) $(RING_LIBS) $(BASE_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_follower.pg
TESTS += tests/unit/test_follower.pg
tests_unit_test_follower_pg_SOURCES = tests/unit/test_follower.c tests/unit/helper_slots.h \
	tests/unit/helper_sql.h
tests_unit_test_follower_pg_LDADD = walstreamd/libwalstreamd.a $(PGWS_LIBS) $(RING_LIBS) \
	$(PG_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_receive.pg
TESTS += tests/unit/test_receive.pg
tests_unit_test_receive_pg_SOURCES = tests/unit/test_receive.c tests/unit/helper_sql.h \
	tests/unit/helper_tls.h
tests_unit_test_receive_pg_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_lag
TESTS += tests/unit/test_lag
tests_unit_test_lag_SOURCES = tests/unit/test_lag.c
tests_unit_test_lag_LDADD = walstreamd/libwalstreamd.a $(PGWS_LIBS) $(PG_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_retention
TESTS += tests/unit/test_retention
tests_unit_test_retention_SOURCES = tests/unit/test_retention.c
tests_unit_test_retention_LDADD = walstreamd/libwalstreamd.a $(UNIT_LIBS)


check_PROGRAMS += tests/unit/test_receive_fake
TESTS += tests/unit/test_receive_fake
tests_unit_test_receive_fake_SOURCES = tests/unit/test_receive_fake.c tests/unit/helper_tls.h \
	tests/unit/helper_walsender.h
tests_unit_test_receive_fake_LDADD = $(WALSTREAM_LIBS) $(UNIT_LIBS)

# Stands where brokerd would and writes down what it reads from the ring.
check_PROGRAMS += tests/helpers/tapd
SYSTEM_HELPERS += tests/helpers/tapd
tests_helpers_tapd_SOURCES = tests/helpers/tapd.c
tests_helpers_tapd_LDADD = brokerd/libbrokerd.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS)
