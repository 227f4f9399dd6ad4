/* SPDX-License-Identifier: PostgreSQL */
/*
 * watchd's counters: ours, the transport's, one for each method and each status of an answer.
 * Context: event thread.
 */
#ifndef WATCHD_WATCHD_STATS_H
#define WATCHD_WATCHD_STATS_H

#include "common/base/stats.h"
#include "watchd/h2.h"

#define WATCHD_COUNTERS(X)                                                                         \
	X(STAT_REVISION, "revision", STATS_GAUGE, "", STATS_STATUS, "of the store")                \
	X(STAT_COMPACT_REVISION, "compact_revision", STATS_GAUGE, "", STATS_STATUS,                \
		"history below it is gone")                                                        \
	X(STAT_SEQ, "log_seq", STATS_GAUGE, "", STATS_STATUS, "newest visible entry of the log")   \
	X(STAT_KEYS, "keys", STATS_GAUGE, "", STATS_STATUS, "keys that live")                      \
	X(STAT_VERSIONS, "versions", STATS_GAUGE, "", STATS_INFO, "versions of keys in memory")    \
	X(STAT_LOG_BYTES, "log_bytes_in_use", STATS_GAUGE, "bytes", STATS_STATUS,                  \
		"keys and history, as watchd.quota counts them")                                   \
	X(STAT_MEMORY_BYTES, "store_memory", STATS_GAUGE, "bytes", STATS_INFO,                     \
		"what the store takes of memory")                                                  \
	X(STAT_DB_BYTES, "log_bytes", STATS_GAUGE, "bytes", STATS_INFO,                            \
		"what the log takes in the database, with its index")                              \
	X(STAT_ENTRIES, "entries_committed", STATS_COUNTER, "", STATS_STATUS,                      \
		"entries of the log committed by this node")                                       \
	X(STAT_ROWS, "rows_committed", STATS_COUNTER, "", STATS_INFO, "rows of these entries")     \
	X(STAT_BATCHES, "batches_committed", STATS_COUNTER, "", STATS_INFO, "batches committed")   \
	X(STAT_LOST_BATCHES, "batches_lost", STATS_COUNTER, "", STATS_INFO,                        \
		"batches evaluated again because another node was faster")                         \
	X(STAT_TURNS, "turns", STATS_COUNTER, "", STATS_INFO,                                      \
		"times that this node queued for its turn among the nodes")                        \
	X(STAT_TIP_READS, "tip_reads", STATS_COUNTER, "", STATS_INFO, "reads of the log's tip")    \
	X(STAT_TIP_ROWS, "tip_rows", STATS_COUNTER, "", STATS_INFO,                                \
		"rows of other nodes that came by them")                                           \
	X(STAT_LOADS, "loads", STATS_COUNTER, "", STATS_INFO, "times that the log was loaded")     \
	X(STAT_DOUBT_FOUND, "in_doubt_found", STATS_COUNTER, "", STATS_INFO,                       \
		"batches in doubt after a lost connection that were found committed")              \
	X(STAT_DOUBT_AGAIN, "in_doubt_again", STATS_COUNTER, "", STATS_INFO,                       \
		"batches in doubt that were not, and were made again")                             \
	X(STAT_REMOVED, "rows_removed", STATS_COUNTER, "", STATS_INFO,                             \
		"rows removed from the log after compactions")                                     \
	X(STAT_TIMEOUTS, "timeouts", STATS_COUNTER, "", STATS_STATUS,                              \
		"changes and reads that the database did not answer in time")                      \
	X(STAT_REFUSED, "refused", STATS_COUNTER, "", STATS_STATUS,                                \
		"changes refused because too many waited")                                         \
	X(STAT_READS_ENDED, "reads_ended", STATS_COUNTER, "", STATS_INFO,                          \
		"lists and snapshots ended: still under way 10 minutes after their history was "   \
		"compacted")                                                                       \
	X(STAT_OPS_WAITING, "ops_waiting", STATS_GAUGE, "", STATS_STATUS,                          \
		"changes that wait for their commit")                                              \
	X(STAT_READS_WAITING, "reads_waiting", STATS_GAUGE, "", STATS_INFO,                        \
		"linearizable reads that wait for the database")                                   \
	X(STAT_WATCH_STREAMS, "watch_streams", STATS_GAUGE, "", STATS_INFO, "streams of watches")  \
	X(STAT_WATCHES, "watches", STATS_GAUGE, "", STATS_STATUS, "watches")                       \
	X(STAT_WATCHES_BEHIND, "watches_behind", STATS_GAUGE, "", STATS_STATUS,                    \
		"watches that read history to catch up")                                           \
	X(STAT_EVENTS_SENT, "events_sent", STATS_COUNTER, "", STATS_STATUS,                        \
		"events sent to watches")                                                          \
	X(STAT_EVENTS_ENCODED, "events_encoded", STATS_COUNTER, "", STATS_INFO,                    \
		"events encoded, once for all who watch them")                                     \
	X(STAT_WATCHES_SLOW, "watches_slow", STATS_COUNTER, "", STATS_INFO,                        \
		"times that a watch fell behind because its client was slow")                      \
	X(STAT_WATCHES_COMPACTED, "watches_compacted", STATS_COUNTER, "", STATS_INFO,              \
		"watches cancelled because their history was compacted")                           \
	X(STAT_LEASES, "leases", STATS_GAUGE, "", STATS_STATUS, "leases")                          \
	X(STAT_LEASES_OURS, "leases_owned", STATS_GAUGE, "", STATS_INFO,                           \
		"leases that this node owns")                                                      \
	X(STAT_KEEPALIVES, "keepalives", STATS_COUNTER, "", STATS_INFO, "keepalives answered")     \
	X(STAT_LEASES_EXPIRED, "leases_expired", STATS_COUNTER, "", STATS_STATUS,                  \
		"leases that ended because nobody kept them alive")                                \
	X(STAT_LEASES_ADOPTED, "leases_adopted", STATS_COUNTER, "", STATS_INFO,                    \
		"leases taken over from dead nodes")                                               \
	X(STAT_LEASES_MOVED, "leases_moved", STATS_COUNTER, "", STATS_INFO,                        \
		"leases taken over because they were kept alive here")                             \
	X(STAT_AUTO_COMPACTIONS, "auto_compactions", STATS_COUNTER, "", STATS_INFO,                \
		"compactions by watchd.auto_compaction")                                           \
	X(STAT_UNKNOWN_METHOD, "unknown_method", STATS_COUNTER, "", STATS_INFO,                    \
		"calls of methods that are not served")                                            \
	X(STAT_BUSY_POLLS, "busy_polls", STATS_COUNTER, "", STATS_INFO,                            \
		"times that the loop looked on instead of sleeping (watchd.busy_poll_us)")         \
	X(STAT_BUSY_POLLS_CAUGHT, "busy_polls_caught", STATS_COUNTER, "", STATS_INFO,              \
		"of these: an event came")                                                         \
	X(STAT_BUSY_POLLS_YIELDED, "busy_polls_yielded", STATS_COUNTER, "", STATS_INFO,            \
		"of these: given up because another thread wanted the CPU")                        \
	X(STAT_FEED_RECORDS, "feed_records", STATS_COUNTER, "", STATS_INFO,                        \
		"records taken from the ring")                                                     \
	X(STAT_FEED_BELLS, "feed_bells", STATS_COUNTER, "", STATS_INFO,                            \
		"times that the ring announced another node's entries")                            \
	X(STAT_FEED_LSN, "feed_received_lsn", STATS_LSN, "", STATS_STATUS,                         \
		"end of the last transaction received")                                            \
	X(STAT_FEED_LAG, "feed_ring_lag", STATS_GAUGE, "bytes", STATS_INFO,                        \
		"in the ring and not yet read")                                                    \
	X(STAT_FEED_DELAY_P50, "feed_delay_p50", STATS_GAUGE, "us", STATS_INFO,                    \
		"from another node's commit, by the server's clock, until watchd hears of it: "    \
		"median of the last minute")                                                       \
	X(STAT_FEED_DELAY_P99, "feed_delay_p99", STATS_GAUGE, "us", STATS_INFO,                    \
		"the same: its 99th percentile")

/* Methods, in the order of grpc_methods. */
#define GRPC_METHODS(X)                                                                            \
	X("range")                                                                                 \
	X("put")                                                                                   \
	X("txn")                                                                                   \
	X("delete_range")                                                                          \
	X("compact")                                                                               \
	X("lease_grant")                                                                           \
	X("lease_revoke")                                                                          \
	X("lease_time_to_live")                                                                    \
	X("lease_leases")                                                                          \
	X("member_list")                                                                           \
	X("alarm")                                                                                 \
	X("status")                                                                                \
	X("defragment")                                                                            \
	X("hash")                                                                                  \
	X("hash_kv")                                                                               \
	X("snapshot")                                                                              \
	X("watch")                                                                                 \
	X("lease_keep_alive")
/* Status of an answer that is not OK, from 1 on in the order of enum grpc_status. */
#define GRPC_STATUSES(X)                                                                           \
	X("cancelled")                                                                             \
	X("unknown")                                                                               \
	X("invalid_argument")                                                                      \
	X("deadline_exceeded")                                                                     \
	X("not_found")                                                                             \
	X("already_exists")                                                                        \
	X("permission_denied")                                                                     \
	X("resource_exhausted")                                                                    \
	X("failed_precondition")                                                                   \
	X("aborted")                                                                               \
	X("out_of_range")                                                                          \
	X("unimplemented")                                                                         \
	X("internal")                                                                              \
	X("unavailable")                                                                           \
	X("data_loss")                                                                             \
	X("unauthenticated")

#define X(name) +1
enum { GRPC_METHOD_COUNT = GRPC_METHODS(X), GRPC_STATUS_COUNT = GRPC_STATUSES(X) };
#undef X

enum watchd_stat {
#define X(id, name, kind, unit, level, help) id,
	WATCHD_COUNTERS(X)
#undef X
		STAT_H2, /* one for each enum h2_stat */
	STAT_METHODS = STAT_H2 + H2_STAT_COUNT,
	STAT_ANSWERS = STAT_METHODS + GRPC_METHOD_COUNT, /* for enum grpc_status - 1 */
	STAT_COUNT = STAT_ANSWERS + GRPC_STATUS_COUNT
};

extern const struct stats_row watchd_stats_rows[STAT_COUNT];

#endif
