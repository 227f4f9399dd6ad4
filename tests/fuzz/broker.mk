# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: broker
FUZZERS += tests/fuzz/fuzz_tojson
tests_fuzz_fuzz_tojson_SOURCES = tests/fuzz/fuzz_tojson.c $(FUZZ_MAIN)
tests_fuzz_fuzz_tojson_LDADD = brokerd/libbrokerd.a $(BASE_LIBS)
tests_fuzz_fuzz_tojson_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/tojson/bool \
	tests/fuzz/corpus/tojson/bools \
	tests/fuzz/corpus/tojson/boxes \
	tests/fuzz/corpus/tojson/cut \
	tests/fuzz/corpus/tojson/deep \
	tests/fuzz/corpus/tojson/float \
	tests/fuzz/corpus/tojson/floatbig \
	tests/fuzz/corpus/tojson/floats \
	tests/fuzz/corpus/tojson/hollow \
	tests/fuzz/corpus/tojson/int \
	tests/fuzz/corpus/tojson/ints \
	tests/fuzz/corpus/tojson/json \
	tests/fuzz/corpus/tojson/jsonb \
	tests/fuzz/corpus/tojson/nested \
	tests/fuzz/corpus/tojson/nests \
	tests/fuzz/corpus/tojson/numeric \
	tests/fuzz/corpus/tojson/oidvec \
	tests/fuzz/corpus/tojson/pair \
	tests/fuzz/corpus/tojson/pairs \
	tests/fuzz/corpus/tojson/text \
	tests/fuzz/corpus/tojson/texts \
	tests/fuzz/corpus/tojson/ts \
	tests/fuzz/corpus/tojson/tss \
	tests/fuzz/corpus/tojson/tstz \
	tests/fuzz/corpus/tojson/vec \
	# end
