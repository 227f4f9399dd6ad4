# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += brokerd/libbrokerd.a
pkglibexec_PROGRAMS += brokerd/brokerd

brokerd_libbrokerd_a_SOURCES = \
	brokerd/broker.c \
	brokerd/broker.h \
	brokerd/changes.c \
	brokerd/changes.h \
	brokerd/message.c \
	brokerd/message.h \
	brokerd/mqtt_decode.h \
	brokerd/mqtt_encode.c \
	brokerd/mqtt_props.c \
	brokerd/mqtt_proto.c \
	brokerd/mqtt_proto.h \
	brokerd/mqtt_text.c \
	# end

brokerd_brokerd_SOURCES = brokerd/brokerd_main.c
brokerd_brokerd_LDADD = brokerd/libbrokerd.a libpgwalstream/libpgwalstream.a $(RING_LIBS) $(PG_LIBS)

EXTRA_DIST += brokerd/README.md
