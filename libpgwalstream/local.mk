# SPDX-License-Identifier: PostgreSQL
# Built twice from the same sources: as the shared library that is installed, and as an archive for
# the daemons and the tests, which so need no library path.
noinst_LIBRARIES += libpgwalstream/libpgwalstream.a
lib_LTLIBRARIES = libpgwalstream/libpgwalstream.la
include_HEADERS = libpgwalstream/pgwalstream.h
pkgconfigdir = $(libdir)/pkgconfig
pkgconfig_DATA = libpgwalstream/pgwalstream.pc
# Users of the archive that open a stream need these behind it.
PGWS_LIBS = libpgwalstream/libpgwalstream.a $(LIBPQ_LIBS) $(OPENSSL_LIBS)

WALSTREAM_SOURCES = \
	libpgwalstream/assemble.c \
	libpgwalstream/assemble_internal.h \
	libpgwalstream/assemble_prepared.c \
	libpgwalstream/assemble_txn.c \
	libpgwalstream/catalog.c \
	libpgwalstream/command.c \
	libpgwalstream/command_text.c \
	libpgwalstream/consumer.c \
	libpgwalstream/consumer_internal.h \
	libpgwalstream/consumer_session.c \
	libpgwalstream/consumer_stream.c \
	libpgwalstream/copy.c \
	libpgwalstream/decode.c \
	libpgwalstream/encode.c \
	libpgwalstream/frames.c \
	libpgwalstream/pgwalstream.h \
	libpgwalstream/receive.c \
	libpgwalstream/receive.h \
	libpgwalstream/receive_tls.c \
	libpgwalstream/slot.c \
	libpgwalstream/stream.c \
	libpgwalstream/stream_internal.h \
	libpgwalstream/text.c \
	libpgwalstream/wire.h \
	# end

libpgwalstream_libpgwalstream_a_SOURCES = $(WALSTREAM_SOURCES)
libpgwalstream_libpgwalstream_la_SOURCES = $(WALSTREAM_SOURCES)
libpgwalstream_libpgwalstream_la_CFLAGS = $(AM_CFLAGS) -fvisibility=hidden
libpgwalstream_libpgwalstream_la_LDFLAGS = -version-info 0:0:0 -no-undefined $(HOWDAH_SHARED_LDFLAGS) \
	-Wl,--version-script=$(srcdir)/libpgwalstream/libpgwalstream.map
libpgwalstream_libpgwalstream_la_LIBADD = $(LIBPQ_LIBS) $(OPENSSL_LIBS)
EXTRA_libpgwalstream_libpgwalstream_la_DEPENDENCIES = libpgwalstream/libpgwalstream.map

EXTRA_DIST += libpgwalstream/README.md libpgwalstream/libpgwalstream.map
