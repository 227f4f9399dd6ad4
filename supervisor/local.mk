# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += supervisor/libsupervisor.a
sbin_PROGRAMS += supervisor/howdahd
pkglibexec_PROGRAMS += supervisor/postgres

supervisor_libsupervisor_a_SOURCES = \
	supervisor/check.c \
	supervisor/control.c \
	supervisor/deaths.c \
	supervisor/deaths.h \
	supervisor/fsm.c \
	supervisor/fsm.h \
	supervisor/listeners.c \
	supervisor/listeners.h \
	supervisor/place.c \
	supervisor/place.h \
	supervisor/reload.c \
	supervisor/roles.c \
	supervisor/roles.h \
	supervisor/settings.c \
	supervisor/settings.h \
	supervisor/spawn.c \
	supervisor/spawn.h \
	supervisor/supervisor.c \
	supervisor/supervisor.h \
	supervisor/worker.c \
	supervisor/worker.h \
	# end

supervisor_howdahd_SOURCES = supervisor/howdahd_main.c
supervisor_howdahd_LDADD = supervisor/libsupervisor.a $(BASE_LIBS)

supervisor_postgres_SOURCES = \
	supervisor/cluster.c \
	supervisor/cluster.h \
	supervisor/cluster_files.c \
	supervisor/cluster_prepare.c \
	supervisor/cluster_schema.c \
	supervisor/postgres_main.c \
	# end
supervisor_postgres_LDADD = $(PG_LIBS)

EXTRA_DIST += supervisor/README.md
