# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: ipc
FUZZERS += tests/fuzz/fuzz_imsg tests/fuzz/fuzz_ctl

tests_fuzz_fuzz_imsg_SOURCES = tests/fuzz/fuzz_imsg.c $(FUZZ_MAIN)
tests_fuzz_fuzz_imsg_LDADD = $(BASE_LIBS)
tests_fuzz_fuzz_imsg_LDFLAGS = $(FUZZLINK)

tests_fuzz_fuzz_ctl_SOURCES = tests/fuzz/fuzz_ctl.c $(FUZZ_MAIN)
tests_fuzz_fuzz_ctl_LDADD = $(BASE_LIBS)
tests_fuzz_fuzz_ctl_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/ctl/bad-utf8 \
	tests/fuzz/corpus/ctl/big-number \
	tests/fuzz/corpus/ctl/deep \
	tests/fuzz/corpus/ctl/duplicate \
	tests/fuzz/corpus/ctl/empty \
	tests/fuzz/corpus/ctl/escapes \
	tests/fuzz/corpus/ctl/float \
	tests/fuzz/corpus/ctl/map-add \
	tests/fuzz/corpus/ctl/nested \
	tests/fuzz/corpus/ctl/no-id \
	tests/fuzz/corpus/ctl/no-version \
	tests/fuzz/corpus/ctl/nul \
	tests/fuzz/corpus/ctl/other-version \
	tests/fuzz/corpus/ctl/sessions \
	tests/fuzz/corpus/ctl/status \
	tests/fuzz/corpus/ctl/trailing \
	tests/fuzz/corpus/ctl/unknown-key \
	tests/fuzz/corpus/ctl/wrong-types \
	tests/fuzz/corpus/imsg/bad-flag \
	tests/fuzz/corpus/imsg/config \
	tests/fuzz/corpus/imsg/control \
	tests/fuzz/corpus/imsg/hello \
	tests/fuzz/corpus/imsg/length-too-large \
	tests/fuzz/corpus/imsg/listener \
	tests/fuzz/corpus/imsg/log-level \
	tests/fuzz/corpus/imsg/peer \
	tests/fuzz/corpus/imsg/ping \
	tests/fuzz/corpus/imsg/pong \
	tests/fuzz/corpus/imsg/ready \
	tests/fuzz/corpus/imsg/relay-attach \
	tests/fuzz/corpus/imsg/reload \
	tests/fuzz/corpus/imsg/reloaded-bad \
	tests/fuzz/corpus/imsg/reloaded-ok \
	tests/fuzz/corpus/imsg/short-header \
	tests/fuzz/corpus/imsg/start \
	tests/fuzz/corpus/imsg/status \
	tests/fuzz/corpus/imsg/string-too-long \
	tests/fuzz/corpus/imsg/string-with-zero \
	tests/fuzz/corpus/imsg/unknown-type \
	# end
