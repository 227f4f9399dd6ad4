# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: base
FUZZERS += tests/fuzz/fuzz_conf tests/fuzz/fuzz_stats
tests_fuzz_fuzz_conf_SOURCES = tests/fuzz/fuzz_conf.c $(FUZZ_MAIN)
tests_fuzz_fuzz_conf_LDADD = $(BASE_LIBS)
tests_fuzz_fuzz_conf_LDFLAGS = $(FUZZLINK)
tests_fuzz_fuzz_stats_SOURCES = tests/fuzz/fuzz_stats.c $(FUZZ_MAIN)
tests_fuzz_fuzz_stats_LDADD = $(BASE_LIBS)
tests_fuzz_fuzz_stats_LDFLAGS = $(FUZZLINK)
EXTRA_DIST += \
	tests/fuzz/corpus/conf/all_types \
	tests/fuzz/corpus/conf/colons \
	tests/fuzz/corpus/conf/comments \
	tests/fuzz/corpus/conf/empty \
	tests/fuzz/corpus/conf/escapes \
	tests/fuzz/corpus/conf/foreign \
	tests/fuzz/corpus/conf/groups \
	tests/fuzz/corpus/conf/include \
	tests/fuzz/corpus/conf/nesting \
	tests/fuzz/corpus/conf/syntax \
	tests/fuzz/corpus/conf/types \
	tests/fuzz/corpus/conf/unknown \
	tests/fuzz/corpus/conf/utf8 \
	tests/fuzz/corpus/conf/wide \
	tests/fuzz/corpus/stats/bad_kind \
	tests/fuzz/corpus/stats/many \
	tests/fuzz/corpus/stats/no_end \
	tests/fuzz/corpus/stats/not_ready \
	tests/fuzz/corpus/stats/one_row \
	tests/fuzz/corpus/stats/two_rows \
	# end
