# SPDX-License-Identifier: PostgreSQL
# Fuzz targets: broker
FUZZERS += tests/fuzz/fuzz_tojson
tests_fuzz_fuzz_tojson_SOURCES = tests/fuzz/fuzz_tojson.c $(FUZZ_MAIN)
tests_fuzz_fuzz_tojson_LDADD = common/libpg.a $(BASE_LIBS)
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
FUZZERS += tests/fuzz/fuzz_mqtt
tests_fuzz_fuzz_mqtt_SOURCES = tests/fuzz/fuzz_mqtt.c $(FUZZ_MAIN)
tests_fuzz_fuzz_mqtt_LDADD = brokerd/libbrokerd.a $(BASE_LIBS)
tests_fuzz_fuzz_mqtt_LDFLAGS = $(FUZZLINK)

EXTRA_DIST += \
	tests/fuzz/corpus/mqtt/auth4 \
	tests/fuzz/corpus/mqtt/auth5 \
	tests/fuzz/corpus/mqtt/auth5-empty \
	tests/fuzz/corpus/mqtt/connack4 \
	tests/fuzz/corpus/mqtt/connack5 \
	tests/fuzz/corpus/mqtt/connect-bad-flags \
	tests/fuzz/corpus/mqtt/connect-version-6 \
	tests/fuzz/corpus/mqtt/connect31 \
	tests/fuzz/corpus/mqtt/connect4 \
	tests/fuzz/corpus/mqtt/connect4-all \
	tests/fuzz/corpus/mqtt/connect5 \
	tests/fuzz/corpus/mqtt/connect5-all \
	tests/fuzz/corpus/mqtt/disconnect4 \
	tests/fuzz/corpus/mqtt/disconnect5 \
	tests/fuzz/corpus/mqtt/disconnect5-short \
	tests/fuzz/corpus/mqtt/long-varint \
	tests/fuzz/corpus/mqtt/padded-varint \
	tests/fuzz/corpus/mqtt/ping \
	tests/fuzz/corpus/mqtt/puback4 \
	tests/fuzz/corpus/mqtt/puback5 \
	tests/fuzz/corpus/mqtt/puback5-short \
	tests/fuzz/corpus/mqtt/pubcomp4 \
	tests/fuzz/corpus/mqtt/publish-surrogate \
	tests/fuzz/corpus/mqtt/publish-utf8 \
	tests/fuzz/corpus/mqtt/publish-wild \
	tests/fuzz/corpus/mqtt/publish4-dup \
	tests/fuzz/corpus/mqtt/publish4-q0 \
	tests/fuzz/corpus/mqtt/publish4-q1 \
	tests/fuzz/corpus/mqtt/publish5-alias \
	tests/fuzz/corpus/mqtt/publish5-alias0 \
	tests/fuzz/corpus/mqtt/publish5-q0 \
	tests/fuzz/corpus/mqtt/publish5-q1 \
	tests/fuzz/corpus/mqtt/publish5-q3 \
	tests/fuzz/corpus/mqtt/pubrec5 \
	tests/fuzz/corpus/mqtt/pubrel-flags \
	tests/fuzz/corpus/mqtt/pubrel5 \
	tests/fuzz/corpus/mqtt/reserved \
	tests/fuzz/corpus/mqtt/session4 \
	tests/fuzz/corpus/mqtt/session5 \
	tests/fuzz/corpus/mqtt/suback4 \
	tests/fuzz/corpus/mqtt/suback5 \
	tests/fuzz/corpus/mqtt/subscribe4 \
	tests/fuzz/corpus/mqtt/subscribe5 \
	tests/fuzz/corpus/mqtt/subscribe5-nolocal-share \
	tests/fuzz/corpus/mqtt/unsuback4 \
	tests/fuzz/corpus/mqtt/unsuback5 \
	tests/fuzz/corpus/mqtt/unsubscribe4 \
	tests/fuzz/corpus/mqtt/unsubscribe5 \
	# end
