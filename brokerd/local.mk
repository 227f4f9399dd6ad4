# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += brokerd/libbrokerd.a
pkglibexec_PROGRAMS += brokerd/brokerd

brokerd_libbrokerd_a_SOURCES = \
	brokerd/broker.c \
	brokerd/broker.h \
	brokerd/broker_int.h \
	brokerd/brokerd.c \
	brokerd/brokerd_conf.c \
	brokerd/brokerd_conf.h \
	brokerd/brokerd_ctl.c \
	brokerd/brokerd_int.h \
	brokerd/brokerd_stats.c \
	brokerd/brokerd_stats.h \
	brokerd/change.c \
	brokerd/change.h \
	brokerd/changes.c \
	brokerd/changes.h \
	brokerd/mapping.c \
	brokerd/mapping.h \
	brokerd/message.c \
	brokerd/message.h \
	brokerd/mqtt_decode.h \
	brokerd/mqtt_encode.c \
	brokerd/mqtt_props.c \
	brokerd/mqtt_proto.c \
	brokerd/mqtt_proto.h \
	brokerd/mqtt_text.c \
	brokerd/msglog.c \
	brokerd/msglog.h \
	brokerd/readdb.c \
	brokerd/readdb.h \
	brokerd/session.c \
	brokerd/session.h \
	brokerd/session_in.c \
	brokerd/session_out.c \
	brokerd/statestore.c \
	brokerd/statestore.h \
	brokerd/template.c \
	brokerd/template.h \
	brokerd/topic.c \
	brokerd/topic.h \
	brokerd/tracker.c \
	brokerd/tracker.h \
	# end

brokerd_brokerd_SOURCES = brokerd/brokerd_main.c
brokerd_brokerd_LDADD = brokerd/libbrokerd.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS)

EXTRA_DIST += brokerd/README.md
