# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += pgctl/libpgctl.a
bin_PROGRAMS += pgctl/pgctl

pgctl_libpgctl_a_CPPFLAGS = $(AM_CPPFLAGS) -DHOWDAH_SBINDIR='"$(sbindir)"'
pgctl_libpgctl_a_SOURCES = \
	pgctl/args.c \
	pgctl/args.h \
	pgctl/cmd_config.c \
	pgctl/cmd_db.c \
	pgctl/cmd_doctor.c \
	pgctl/cmd_help.c \
	pgctl/cmd_map.c \
	pgctl/cmd_node.c \
	pgctl/output.c \
	pgctl/output.h \
	pgctl/pgctl.c \
	pgctl/pgctl.h \
	pgctl/place.c \
	pgctl/place.h \
	# end

pgctl_pgctl_SOURCES = pgctl/pgctl_main.c
pgctl_pgctl_LDADD = pgctl/libpgctl.a $(PG_LIBS)

EXTRA_DIST += pgctl/README.md
