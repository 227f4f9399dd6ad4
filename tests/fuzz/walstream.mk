# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: walstream
FUZZERS += tests/fuzz/fuzz_decode
tests_fuzz_fuzz_decode_SOURCES = tests/fuzz/fuzz_decode.c $(FUZZ_MAIN)
tests_fuzz_fuzz_decode_LDADD = libpgwalstream/libpgwalstream.a
tests_fuzz_fuzz_decode_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/decode/abort \
	tests/fuzz/corpus/decode/abort-long \
	tests/fuzz/corpus/decode/begin \
	tests/fuzz/corpus/decode/commit \
	tests/fuzz/corpus/decode/delete-full \
	tests/fuzz/corpus/decode/delete-key \
	tests/fuzz/corpus/decode/insert \
	tests/fuzz/corpus/decode/insert-binary \
	tests/fuzz/corpus/decode/insert-empty \
	tests/fuzz/corpus/decode/insert-null \
	tests/fuzz/corpus/decode/message \
	tests/fuzz/corpus/decode/message-transactional \
	tests/fuzz/corpus/decode/origin \
	tests/fuzz/corpus/decode/relation \
	tests/fuzz/corpus/decode/relation-catalog \
	tests/fuzz/corpus/decode/relation-empty \
	tests/fuzz/corpus/decode/truncate \
	tests/fuzz/corpus/decode/truncate-two \
	tests/fuzz/corpus/decode/type \
	tests/fuzz/corpus/decode/update \
	tests/fuzz/corpus/decode/update-full \
	tests/fuzz/corpus/decode/update-key \
	tests/fuzz/corpus/decode/update-toast \
	# end
