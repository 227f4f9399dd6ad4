# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: ring
FUZZERS += tests/fuzz/fuzz_ring
tests_fuzz_fuzz_ring_SOURCES = tests/fuzz/fuzz_ring.c $(FUZZ_MAIN)
tests_fuzz_fuzz_ring_LDADD = $(RING_LIBS) $(BASE_LIBS)
tests_fuzz_fuzz_ring_LDFLAGS = $(FUZZLINK)
EXTRA_DIST += \
	tests/fuzz/corpus/ring/bad_head \
	tests/fuzz/corpus/ring/bad_length \
	tests/fuzz/corpus/ring/bad_magic \
	tests/fuzz/corpus/ring/empty \
	tests/fuzz/corpus/ring/fragments \
	tests/fuzz/corpus/ring/pad_at_end \
	tests/fuzz/corpus/ring/three_records \
	tests/fuzz/corpus/ring/wrap_64_bit
