# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += libpgwalstream/libpgwalstream.a

libpgwalstream_libpgwalstream_a_SOURCES = \
	libpgwalstream/catalog.c \
	libpgwalstream/decode.c \
	libpgwalstream/pgwalstream.h \
	libpgwalstream/stream.c \
	# end

EXTRA_DIST += libpgwalstream/README.md
