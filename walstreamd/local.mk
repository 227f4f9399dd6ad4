# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += walstreamd/libwalstreamd.a
pkglibexec_PROGRAMS += walstreamd/walstreamd

walstreamd_libwalstreamd_a_SOURCES = \
	walstreamd/follower.c \
	walstreamd/follower.h \
	walstreamd/lag.c \
	walstreamd/lag.h \
	walstreamd/publisher.c \
	walstreamd/publisher.h \
	walstreamd/registrar.c \
	walstreamd/registrar.h \
	walstreamd/retention.c \
	walstreamd/retention.h \
	walstreamd/timeline.c \
	walstreamd/timeline.h \
	walstreamd/walstreamd.c \
	walstreamd/walstreamd.h \
	# end

walstreamd_walstreamd_SOURCES = walstreamd/walstreamd_main.c
walstreamd_walstreamd_LDADD = walstreamd/libwalstreamd.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS)

EXTRA_DIST += walstreamd/README.md
