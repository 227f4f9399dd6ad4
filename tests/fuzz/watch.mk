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
FUZZERS += tests/fuzz/fuzz_http1
tests_fuzz_fuzz_http1_SOURCES = tests/fuzz/fuzz_http1.c $(FUZZ_MAIN)
tests_fuzz_fuzz_http1_LDADD = watchd/libwatchd.a $(BASE_LIBS)
tests_fuzz_fuzz_http1_LDFLAGS = $(FUZZLINK)
FUZZERS += tests/fuzz/fuzz_grpc
tests_fuzz_fuzz_grpc_SOURCES = tests/fuzz/fuzz_grpc.c $(FUZZ_MAIN)
tests_fuzz_fuzz_grpc_LDADD = watchd/libwatchd.a $(BASE_LIBS)
tests_fuzz_fuzz_grpc_LDFLAGS = $(FUZZLINK)
FUZZERS += tests/fuzz/fuzz_watch_h2
tests_fuzz_fuzz_watch_h2_SOURCES = tests/fuzz/fuzz_watch_h2.c $(FUZZ_MAIN)
tests_fuzz_fuzz_watch_h2_LDADD = watchd/libwatchd.a $(BASE_LIBS) $(NGHTTP2_LIBS)
tests_fuzz_fuzz_watch_h2_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/grpc/compressed \
	tests/fuzz/corpus/grpc/content-type \
	tests/fuzz/corpus/grpc/cut \
	tests/fuzz/corpus/grpc/large \
	tests/fuzz/corpus/grpc/timeout \
	tests/fuzz/corpus/grpc/two \
	tests/fuzz/corpus/http1/chunked \
	tests/fuzz/corpus/http1/get \
	tests/fuzz/corpus/http1/head10 \
	tests/fuzz/corpus/http1/http2 \
	tests/fuzz/corpus/http1/no-path \
	tests/fuzz/corpus/http1/pipelined \
	tests/fuzz/corpus/http1/put \
	tests/fuzz/corpus/http1/tls \
	tests/fuzz/corpus/watch_h2/big \
	tests/fuzz/corpus/watch_h2/big-reset \
	tests/fuzz/corpus/watch_h2/control \
	tests/fuzz/corpus/watch_h2/headers \
	tests/fuzz/corpus/watch_h2/http1 \
	tests/fuzz/corpus/watch_h2/http1-bad \
	tests/fuzz/corpus/watch_h2/http1-later \
	tests/fuzz/corpus/watch_h2/large \
	tests/fuzz/corpus/watch_h2/preface-cut \
	tests/fuzz/corpus/watch_h2/refused \
	tests/fuzz/corpus/watch_h2/reset \
	tests/fuzz/corpus/watch_h2/stream \
	tests/fuzz/corpus/watch_h2/streams \
	tests/fuzz/corpus/watch_h2/trailers \
	tests/fuzz/corpus/watch_h2/unary \
	tests/fuzz/corpus/watch_h2/unfinished \
	# end

FUZZERS += tests/fuzz/fuzz_watch_store
tests_fuzz_fuzz_watch_store_SOURCES = tests/fuzz/fuzz_watch_store.c tests/unit/store_model.c \
	tests/unit/store_model.h $(FUZZ_MAIN)
tests_fuzz_fuzz_watch_store_LDADD = watchd/libwatchd.a $(WATCH_LIBS)
tests_fuzz_fuzz_watch_store_LDFLAGS = $(FUZZLINK)
EXTRA_DIST += \
	tests/fuzz/corpus/watch_store/compactions \
	tests/fuzz/corpus/watch_store/leases \
	tests/fuzz/corpus/watch_store/mixed \
	tests/fuzz/corpus/watch_store/rollbacks \
	tests/fuzz/corpus/watch_store/writes \
	# end

FUZZERS += tests/fuzz/fuzz_watch_request
tests_fuzz_fuzz_watch_request_SOURCES = tests/fuzz/fuzz_watch_request.c tests/unit/kv_text.c \
	tests/unit/kv_text.h $(FUZZ_MAIN)
tests_fuzz_fuzz_watch_request_LDADD = watchd/libwatchd.a $(WATCH_LIBS)
tests_fuzz_fuzz_watch_request_LDFLAGS = $(FUZZLINK)
EXTRA_DIST += \
	tests/fuzz/corpus/watch_request/delete \
	tests/fuzz/corpus/watch_request/put \
	tests/fuzz/corpus/watch_request/put-ignore \
	tests/fuzz/corpus/watch_request/range \
	tests/fuzz/corpus/watch_request/range-all \
	tests/fuzz/corpus/watch_request/range-count \
	tests/fuzz/corpus/watch_request/txn \
	tests/fuzz/corpus/watch_request/txn-deep \
	tests/fuzz/corpus/watch_request/txn-nested \
	tests/fuzz/corpus/watch_request/txn-overlap \
	tests/fuzz/corpus/watch_request/txn-read \
	# end
