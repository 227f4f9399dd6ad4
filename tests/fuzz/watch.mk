# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: watchd
FUZZERS += tests/fuzz/fuzz_watch_watch
tests_fuzz_fuzz_watch_watch_SOURCES = tests/fuzz/fuzz_watch_watch.c tests/unit/watch_model.c \
	tests/unit/watch_model.h tests/unit/watch_testing.c tests/unit/watch_testing.h $(FUZZ_MAIN)
tests_fuzz_fuzz_watch_watch_LDADD = watchd/libwatchd.a $(WATCH_LIBS)
tests_fuzz_fuzz_watch_watch_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/watch_watch/random1 \
	tests/fuzz/corpus/watch_watch/random2 \
	tests/fuzz/corpus/watch_watch/random3 \
	tests/fuzz/corpus/watch_watch/short \
	# end
