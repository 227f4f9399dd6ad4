# SPDX-License-Identifier: PostgreSQL
noinst_LIBRARIES += watchd/libwatchpb.a watchd/libwatchd.a
pkglibexec_PROGRAMS += watchd/watchd

# protobuf-c's part is made in the build tree; its warnings are not ours.
WATCH_PROTOS = watchd/proto/kv.proto watchd/proto/rpc.proto
WATCH_PB_H = watchd/proto/kv.pb-c.h watchd/proto/rpc.pb-c.h
WATCH_PB_C = watchd/proto/kv.pb-c.c watchd/proto/rpc.pb-c.c
watchd_libwatchpb_a_CFLAGS = $(AM_CFLAGS) -w
nodist_watchd_libwatchpb_a_SOURCES = $(WATCH_PB_C) $(WATCH_PB_H)
BUILT_SOURCES += $(WATCH_PB_H)
CLEANFILES += $(WATCH_PB_C) $(WATCH_PB_H)
EXTRA_DIST += $(WATCH_PROTOS)

watchd/proto/kv.pb-c.c: watchd/proto/kv.proto
	$(AM_V_GEN)$(MKDIR_P) watchd/proto && $(PROTOC_C) -I$(srcdir)/watchd/proto --c_out=watchd/proto \
		$(srcdir)/watchd/proto/kv.proto
watchd/proto/rpc.pb-c.c: watchd/proto/rpc.proto watchd/proto/kv.proto
	$(AM_V_GEN)$(MKDIR_P) watchd/proto && $(PROTOC_C) -I$(srcdir)/watchd/proto --c_out=watchd/proto \
		$(srcdir)/watchd/proto/rpc.proto
watchd/proto/kv.pb-c.h: watchd/proto/kv.pb-c.c
	@test -f $@ || { rm -f watchd/proto/kv.pb-c.c; $(MAKE) $(AM_MAKEFLAGS) watchd/proto/kv.pb-c.c; }
watchd/proto/rpc.pb-c.h: watchd/proto/rpc.pb-c.c watchd/proto/kv.pb-c.h
	@test -f $@ || { rm -f watchd/proto/rpc.pb-c.c; $(MAKE) $(AM_MAKEFLAGS) watchd/proto/rpc.pb-c.c; }
$(watchd_libwatchpb_a_OBJECTS) $(watchd_libwatchd_a_OBJECTS): $(WATCH_PB_H)

watchd_libwatchd_a_SOURCES = \
	watchd/compactor.c \
	watchd/compactor.h \
	watchd/engine.c \
	watchd/engine.h \
	watchd/engine_aux.c \
	watchd/engine_batch.c \
	watchd/engine_int.h \
	watchd/engine_session.c \
	watchd/engine_tip.c \
	watchd/etcd_error.c \
	watchd/etcd_error.h \
	watchd/feed.c \
	watchd/feed.h \
	watchd/grpc.c \
	watchd/grpc.h \
	watchd/grpc_proto.c \
	watchd/grpc_proto.h \
	watchd/grpc_status.h \
	watchd/h2.h \
	watchd/h2_conn.c \
	watchd/h2_http1.c \
	watchd/h2_in.c \
	watchd/h2_int.h \
	watchd/h2_out.c \
	watchd/h2_server.c \
	watchd/h2_session.c \
	watchd/http.c \
	watchd/http.h \
	watchd/http1_proto.c \
	watchd/http1_proto.h \
	watchd/interval.c \
	watchd/interval.h \
	watchd/keyindex.c \
	watchd/keyindex.h \
	watchd/kv.h \
	watchd/kv_check.c \
	watchd/kv_encode.c \
	watchd/kv_int.h \
	watchd/kv_overlap.c \
	watchd/kv_range.c \
	watchd/kv_txn.c \
	watchd/lease.c \
	watchd/lease.h \
	watchd/lease_adopt.c \
	watchd/lease_int.h \
	watchd/lease_keepalive.c \
	watchd/log_load.c \
	watchd/log_load.h \
	watchd/log_sql.c \
	watchd/log_sql.h \
	watchd/services.h \
	watchd/store.c \
	watchd/store.h \
	watchd/store_apply.c \
	watchd/store_change.c \
	watchd/store_commit.c \
	watchd/store_eval.c \
	watchd/store_evlog.c \
	watchd/store_hash.c \
	watchd/store_int.h \
	watchd/store_lease.c \
	watchd/store_pending.c \
	watchd/store_trim.c \
	watchd/store_version.c \
	watchd/svc.h \
	watchd/svc_cluster.c \
	watchd/svc_kv.c \
	watchd/svc_lease.c \
	watchd/svc_maint.c \
	watchd/svc_snapshot.c \
	watchd/svc_watch.c \
	watchd/watch.h \
	watchd/watch_catchup.c \
	watchd/watch_encode.c \
	watchd/watch_encode.h \
	watchd/watch_int.h \
	watchd/watch_round.c \
	watchd/watch_set.c \
	watchd/watch_stream.c \
	watchd/watchd.c \
	watchd/watchd.h \
	watchd/watchd_conf.c \
	watchd/watchd_conf.h \
	watchd/watchd_ctl.c \
	watchd/watchd_ctl.h \
	watchd/watchd_ctl_read.c \
	watchd/watchd_stats.c \
	watchd/watchd_stats.h \
	# end

# What links libwatchd.a names these behind it.
WATCH_LIBS = watchd/libwatchpb.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS) $(NGHTTP2_LIBS) $(PROTOBUFC_LIBS)

watchd_watchd_SOURCES = watchd/watchd_main.c
watchd_watchd_LDADD = watchd/libwatchd.a $(WATCH_LIBS)

EXTRA_DIST += watchd/README.md
