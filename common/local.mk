# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += common/libbase.a common/libpg.a common/libring.a

# base and ipc: no libpq in here, the supervisor links it.
common_libbase_a_SOURCES = \
	common/base/buf.c \
	common/base/buf.h \
	common/base/conf.c \
	common/base/conf.h \
	common/base/conf_text.c \
	common/base/conf_text.h \
	common/base/err.c \
	common/base/err.h \
	common/base/ev.c \
	common/base/ev.h \
	common/base/io.c \
	common/base/io.h \
	common/base/list.h \
	common/base/listen_url.c \
	common/base/listen_url.h \
	common/base/listener.c \
	common/base/listener.h \
	common/base/log.c \
	common/base/log.h \
	common/base/log_panic.h \
	common/base/mem.c \
	common/base/mem.h \
	common/base/node_name.c \
	common/base/node_name.h \
	common/base/pg_time.h \
	common/base/proc.c \
	common/base/proc.h \
	common/base/sdnotify.c \
	common/base/sdnotify.h \
	common/base/stats.c \
	common/base/stats.h \
	common/ipc/ctl.h \
	common/ipc/ctl_client.c \
	common/ipc/ctl_proto.c \
	common/ipc/ctl_server.c \
	common/ipc/ctl_table.c \
	common/ipc/daemon.c \
	common/ipc/daemon.h \
	common/ipc/imsg.c \
	common/ipc/imsg.h \
	common/ipc/worker_proto.c \
	common/ipc/worker_proto.h \
	# end

common_libpg_a_SOURCES = \
	common/pg/batch.c \
	common/pg/batch.h \
	common/pg/pg_array.h \
	common/pg/pgconf.c \
	common/pg/pgconf.h \
	common/pg/pgconn.c \
	common/pg/pgconn.h \
	common/pg/pgresolve.c \
	common/pg/pgresolve.h \
	common/pg/pgstate.c \
	common/pg/schema.c \
	common/pg/schema.h \
	common/pg/tojson.c \
	common/pg/tojson.h \
	common/pg/typecache.c \
	common/pg/typecache.h \
	common/pg/typeread.c \
	common/pg/writer_session.c \
	common/pg/writer_session.h \
	# end

common_libring_a_SOURCES = \
	common/ring/ring.c \
	common/ring/ring.h \
	common/ring/ring_conf.c \
	common/ring/ring_conf.h \
	common/ring/ring_crc.c \
	common/ring/ring_layout.h \
	common/ring/ring_link.c \
	common/ring/ring_link.h \
	common/ring/ring_notify.c \
	common/ring/ring_notify.h \
	common/ring/ring_reader.c \
	common/ring/ring_reader.h \
	common/ring/ring_spool.c \
	common/ring/ring_spool.h \
	# end

EXTRA_DIST += common/README.md
