# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += pgctl/libpgctl.a
bin_PROGRAMS += pgctl/pgctl

pgctl_libpgctl_a_CPPFLAGS = $(AM_CPPFLAGS) -DHOWDAH_SBINDIR='"$(sbindir)"' $(OPENSSL_CFLAGS)
pgctl_libpgctl_a_SOURCES = \
	pgctl/args.c \
	pgctl/args.h \
	pgctl/bench.h \
	pgctl/bench_cert.c \
	pgctl/bench_etcd.c \
	pgctl/bench_grpc.c \
	pgctl/bench_grpc.h \
	pgctl/bench_keeper.c \
	pgctl/bench_kv.c \
	pgctl/bench_kv.h \
	pgctl/bench_kv_watch.c \
	pgctl/bench_latency.c \
	pgctl/bench_latency.h \
	pgctl/bench_load.c \
	pgctl/bench_load.h \
	pgctl/bench_proc.c \
	pgctl/bench_proxy.c \
	pgctl/bench_proxy.h \
	pgctl/bench_reader.c \
	pgctl/bench_reader.h \
	pgctl/bench_server.c \
	pgctl/bench_suite.c \
	pgctl/bench_suite.h \
	pgctl/cmd_bench_pipeline.c \
	pgctl/cmd_bench_wal.c \
	pgctl/cmd_bench_watch.c \
	pgctl/cmd_config.c \
	pgctl/cmd_db.c \
	pgctl/cmd_doctor.c \
	pgctl/cmd_help.c \
	pgctl/cmd_map.c \
	pgctl/cmd_node.c \
	pgctl/cmd_wal_slots.c \
	pgctl/cmd_wal_tail.c \
	pgctl/output.c \
	pgctl/output.h \
	pgctl/pgctl.c \
	pgctl/pgctl.h \
	pgctl/place.c \
	pgctl/place.h \
	pgctl/tail_out.c \
	pgctl/tail_out.h \
	pgctl/tail_show.c \
	pgctl/tail_show.h \
	pgctl/walconn.c \
	pgctl/walconn.h \
	# end

pgctl_pgctl_SOURCES = pgctl/pgctl_main.c
pgctl_pgctl_LDADD = pgctl/libpgctl.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS) $(NGHTTP2_LIBS)

EXTRA_DIST += pgctl/README.md
