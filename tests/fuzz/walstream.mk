# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: walstream
FUZZERS += tests/fuzz/fuzz_decode tests/fuzz/fuzz_encode
tests_fuzz_fuzz_decode_SOURCES = tests/fuzz/fuzz_decode.c $(FUZZ_MAIN)
tests_fuzz_fuzz_decode_LDADD = libpgwalstream/libpgwalstream.a
tests_fuzz_fuzz_decode_LDFLAGS = $(FUZZLINK)
tests_fuzz_fuzz_encode_SOURCES = tests/fuzz/fuzz_encode.c tests/unit/helper_msg.h $(FUZZ_MAIN)
tests_fuzz_fuzz_encode_LDADD = libpgwalstream/libpgwalstream.a
tests_fuzz_fuzz_encode_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/decode/abort \
	tests/fuzz/corpus/decode/abort-long \
	tests/fuzz/corpus/decode/begin \
	tests/fuzz/corpus/decode/begin-prepare \
	tests/fuzz/corpus/decode/commit \
	tests/fuzz/corpus/decode/commit-prepared \
	tests/fuzz/corpus/decode/delete-full \
	tests/fuzz/corpus/decode/delete-key \
	tests/fuzz/corpus/decode/in-stream-delete-full \
	tests/fuzz/corpus/decode/in-stream-delete-key \
	tests/fuzz/corpus/decode/in-stream-insert \
	tests/fuzz/corpus/decode/in-stream-insert-binary \
	tests/fuzz/corpus/decode/in-stream-insert-empty \
	tests/fuzz/corpus/decode/in-stream-insert-null \
	tests/fuzz/corpus/decode/in-stream-message \
	tests/fuzz/corpus/decode/in-stream-message-transactional \
	tests/fuzz/corpus/decode/in-stream-relation \
	tests/fuzz/corpus/decode/in-stream-relation-catalog \
	tests/fuzz/corpus/decode/in-stream-relation-empty \
	tests/fuzz/corpus/decode/in-stream-truncate \
	tests/fuzz/corpus/decode/in-stream-truncate-two \
	tests/fuzz/corpus/decode/in-stream-type \
	tests/fuzz/corpus/decode/in-stream-update \
	tests/fuzz/corpus/decode/in-stream-update-full \
	tests/fuzz/corpus/decode/in-stream-update-key \
	tests/fuzz/corpus/decode/in-stream-update-toast \
	tests/fuzz/corpus/decode/insert \
	tests/fuzz/corpus/decode/insert-binary \
	tests/fuzz/corpus/decode/insert-empty \
	tests/fuzz/corpus/decode/insert-null \
	tests/fuzz/corpus/decode/message \
	tests/fuzz/corpus/decode/message-transactional \
	tests/fuzz/corpus/decode/origin \
	tests/fuzz/corpus/decode/prepare \
	tests/fuzz/corpus/decode/relation \
	tests/fuzz/corpus/decode/relation-catalog \
	tests/fuzz/corpus/decode/relation-empty \
	tests/fuzz/corpus/decode/rollback-prepared \
	tests/fuzz/corpus/decode/stream-commit \
	tests/fuzz/corpus/decode/stream-prepare \
	tests/fuzz/corpus/decode/stream-start \
	tests/fuzz/corpus/decode/stream-start-again \
	tests/fuzz/corpus/decode/stream-stop \
	tests/fuzz/corpus/decode/truncate \
	tests/fuzz/corpus/decode/truncate-two \
	tests/fuzz/corpus/decode/type \
	tests/fuzz/corpus/decode/update \
	tests/fuzz/corpus/decode/update-full \
	tests/fuzz/corpus/decode/update-key \
	tests/fuzz/corpus/decode/update-toast \
	tests/fuzz/corpus/encode/abort \
	tests/fuzz/corpus/encode/abort-long \
	tests/fuzz/corpus/encode/begin \
	tests/fuzz/corpus/encode/begin-prepare \
	tests/fuzz/corpus/encode/commit \
	tests/fuzz/corpus/encode/commit-flags \
	tests/fuzz/corpus/encode/commit-prepared \
	tests/fuzz/corpus/encode/delete \
	tests/fuzz/corpus/encode/delete-full \
	tests/fuzz/corpus/encode/in-stream-insert \
	tests/fuzz/corpus/encode/in-stream-message \
	tests/fuzz/corpus/encode/in-stream-nobody \
	tests/fuzz/corpus/encode/in-stream-relation \
	tests/fuzz/corpus/encode/in-stream-truncate \
	tests/fuzz/corpus/encode/insert \
	tests/fuzz/corpus/encode/insert-kind \
	tests/fuzz/corpus/encode/insert-long \
	tests/fuzz/corpus/encode/insert-span \
	tests/fuzz/corpus/encode/insert-span-short \
	tests/fuzz/corpus/encode/message \
	tests/fuzz/corpus/encode/no-type \
	tests/fuzz/corpus/encode/origin \
	tests/fuzz/corpus/encode/origin-null \
	tests/fuzz/corpus/encode/prepare \
	tests/fuzz/corpus/encode/relation \
	tests/fuzz/corpus/encode/relation-identity \
	tests/fuzz/corpus/encode/relation-nameless \
	tests/fuzz/corpus/encode/relation-span \
	tests/fuzz/corpus/encode/rollback-prepared \
	tests/fuzz/corpus/encode/stream-commit \
	tests/fuzz/corpus/encode/stream-prepare \
	tests/fuzz/corpus/encode/stream-start \
	tests/fuzz/corpus/encode/stream-start-zero \
	tests/fuzz/corpus/encode/stream-stop \
	tests/fuzz/corpus/encode/truncate \
	tests/fuzz/corpus/encode/type \
	tests/fuzz/corpus/encode/update \
	tests/fuzz/corpus/encode/update-full \
	tests/fuzz/corpus/encode/update-key \
	tests/fuzz/corpus/encode/update-wrong \
	# end

FUZZERS += tests/fuzz/fuzz_assemble
tests_fuzz_fuzz_assemble_SOURCES = tests/fuzz/fuzz_assemble.c $(FUZZ_MAIN)
tests_fuzz_fuzz_assemble_LDADD = libpgwalstream/libpgwalstream.a
tests_fuzz_fuzz_assemble_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/assemble/aborts \
	tests/fuzz/corpus/assemble/interleaved \
	tests/fuzz/corpus/assemble/ordinary \
	tests/fuzz/corpus/assemble/prepared \
	tests/fuzz/corpus/assemble/prepared-known-relation \
	tests/fuzz/corpus/assemble/stream-prepared \
	tests/fuzz/corpus/assemble/streamed \
	tests/fuzz/corpus/assemble/unknown \
	# end
