/* SPDX-License-Identifier: PostgreSQL */
/*
 * A worker that misbehaves on demand: what the supervisor has to live with, which no real worker
 * does on purpose. It is built on the true skeleton (daemon_main) and takes the role of the name
 * that it is started by. What it does stands in state_dir/NAME.do, read at each start:
 *
 *     exit N         leave with status N before READY
 *     late-exit N    the same 50 ms after READY
 *     slow           never READY
 *     late-ready     READY after a second
 *     abort          ASSERT before READY
 *     late-abort     ASSERT 50 ms after READY
 *     hang           stop the event loop after READY
 *     garbage        send a malformed message after READY
 *     twice          say READY twice
 *     stubborn       ignore STOP
 *     version        say HELLO as another build
 *
 * `fake = "bad"` in its section is refused by -t, at start and at reload. As brokerd it serves each
 * client of its listeners one line, its pid, and relays a descriptor to walstreamd.
 */
#include "config.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/ipc/daemon.h"

#define FAKE_MAGIC 0x66616b65U
#define LATE_MS 50
#define READY_LATE_MS 1000

struct fake {
	uint32_t magic;
	struct daemon *d;
	char deed[64];
	int number;
	struct ev_timer timer;
	struct ev_io accept[DAEMON_LISTENERS_MAX];
};

static struct fake fake;
static const char *fake_key;

enum { STAT_PEERS, STAT_RELAYS, STAT_POSITION };
static const struct stats_row fake_stats[] = {
	[STAT_PEERS] = {"fake_peers_up", STATS_GAUGE, "", STATS_STATUS, "peers that are up"},
	[STAT_RELAYS] = {"fake_relays_received", STATS_COUNTER, "", STATS_INFO, "relayed messages"},
	[STAT_POSITION] = {"fake_position", STATS_LSN, "", STATS_STATUS, "a position"},
};

static bool does(const char *deed)
{
	return strcmp(fake.deed, deed) == 0;
}

/* From the working folder, which is state_dir. */
static void read_deed(const char *name)
{
	char *path = xasprintf("%s.do", name);
	FILE *f = fopen(path, "re");

	if (f != NULL) {
		if (fscanf(f, "%63s %d", fake.deed, &fake.number) < 1)
			fake.deed[0] = '\0';
		fclose(f);
	}
	free(path);
}

/* One message made by hand, so that it can be wrong. */
static void send_raw(uint32_t type, const struct buf *body, uint32_t len_said)
{
	const char *generation = getenv(WORKER_ENV_GENERATION);
	struct buf packet;

	buf_init(&packet, IMSG_BODY_MAX);
	buf_put_be32(&packet, type);
	buf_put_be32(&packet, len_said);
	buf_put_be32(&packet, 0);
	buf_put_be32(&packet, generation != NULL ? (uint32_t)strtoul(generation, NULL, 10) : 0);
	buf_put(&packet, body->data, body->len_bytes);
	if (send(WORKER_FD_IMSG, packet.data, packet.len_bytes, 0) < 0)
		perror("fake worker: send");
	buf_free(&packet);
}

static void say_other_version(enum role role)
{
	char build[] = "0.0.1";
	const struct worker_hello m = {
		.version = WORKER_PROTO_VERSION, .build = build, .role = role};
	struct buf body;

	buf_init(&body, 64);
	worker_put_hello(&body, &m);
	send_raw(WORKER_MSG_HELLO, &body, (uint32_t)body.len_bytes);
	buf_free(&body);
	for (;;)
		pause();
}

static void on_late(void *arg)
{
	struct fake *f;
	OBJ_CAST(f, arg, FAKE_MAGIC);
	if (does("late-ready"))
		daemon_ready(f->d);
	if (does("late-exit"))
		_exit(f->number);
	if (does("late-abort"))
		ASSERT(!"told to, late");
	while (does("hang"))
		pause();
}

static void on_accept(int fd, short what, void *arg)
{
	struct fake *f;
	OBJ_CAST(f, arg, FAKE_MAGIC);
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

	(void)what;
	if (client < 0)
		return;
	dprintf(client, "%ld\n", (long)getpid());
	close(client);
}

static void send_bad(uint32_t type, uint32_t len_said)
{
	struct buf nothing;

	buf_init(&nothing, 16);
	send_raw(type, &nothing, len_said);
	buf_free(&nothing);
}

static int fake_init(struct daemon *d)
{
	fake.magic = FAKE_MAGIC;
	fake.d = d;
	d->self = &fake;
	ev_timer_init(&fake.timer, d->loop, "fake", on_late, &fake);
	daemon_status(d, "fake, does %s", fake.deed[0] != '\0' ? fake.deed : "well");
	stats_set(d->stats, STAT_POSITION, UINT64_C(0x123456789));
	if (does("exit"))
		_exit(fake.number);
	if (does("abort"))
		ASSERT(!"told to");
	if (does("slow"))
		return 0;
	for (size_t i = 0; i < d->n_listeners; i++) {
		ev_io_init(&fake.accept[i], d->loop, "fake.accept", on_accept, &fake);
		ev_io_set(&fake.accept[i], d->listeners[i].fd, EV_READ);
	}
	if (does("late-ready")) {
		ev_timer_start(&fake.timer, READY_LATE_MS);
		return 0;
	}
	daemon_ready(d);
	if (does("garbage"))
		send_bad(WORKER_MSG_STATUS, 256);
	if (does("twice"))
		send_bad(WORKER_MSG_READY, 0);
	ev_timer_start(&fake.timer, LATE_MS);
	return 0;
}

#define FAKE_ROW(section)                                                                          \
	{                                                                                          \
		.path = section ".fake", .type = CONF_STRING, .max = 100, .def = "",               \
		.help = "anything but bad"                                                         \
	}
#define ENABLED_ROW(section)                                                                       \
	{                                                                                          \
		.path = section ".enabled", .type = CONF_BOOL, .def = "true", .help = "run it"     \
	}

static const struct conf_row url_rows[] = {
	{.path = "url", .type = CONF_STRING, .max = 512, .help = "where"},
	{.path = NULL},
};
static const struct conf_row broker_rows[] = {
	ENABLED_ROW("brokerd"),
	FAKE_ROW("brokerd"),
	{.path = "brokerd.slow_key",
		.type = CONF_STRING,
		.max = 100,
		.def = "",
		.reload = CONF_WORKER,
		.secret = true,
		.help = "a change needs a restart of the worker"},
	{.path = "brokerd.slowest_key",
		.type = CONF_STRING,
		.max = 100,
		.def = "",
		.reload = CONF_RESTART,
		.help = "a change needs a restart of the suite"},
	{.path = "brokerd.listeners",
		.type = CONF_GROUPS,
		.def = "( { url = \"mqtt://127.0.0.1:1883\"; } )",
		.child = url_rows,
		.help = "where clients connect"},
	{.path = NULL},
};
static const struct conf_row wal_rows[] = {
	ENABLED_ROW("walstreamd"),
	FAKE_ROW("walstreamd"),
	{.path = NULL},
};
static const struct conf_row postgres_rows[] = {
	FAKE_ROW("postgres"),
	{.path = "postgres.mode", .type = CONF_STRING, .max = 20, .def = "", .help = "which"},
	{.path = NULL},
};
static const struct conf_row watch_rows[] = {
	ENABLED_ROW("watchd"),
	FAKE_ROW("watchd"),
	{.path = "watchd.listeners",
		.type = CONF_GROUPS,
		.def = "",
		.child = url_rows,
		.help = "where clients connect"},
	{.path = NULL},
};
static const struct conf_row *const watch_schemas[] = {watch_rows, NULL};
static const struct conf_row *const broker_schemas[] = {broker_rows, NULL};
static const struct conf_row *const wal_schemas[] = {wal_rows, NULL};
static const struct conf_row *const postgres_schemas[] = {postgres_rows, NULL};

/* By enum role. */
static const struct fake_role {
	const char *name, *key;
	const struct conf_row *const *schemas;
} fake_roles[ROLE_COUNT] = {
	[ROLE_POSTGRES] = {"postgres", "postgres.fake", postgres_schemas},
	[ROLE_WALSTREAMD] = {"walstreamd", "walstreamd.fake", wal_schemas},
	[ROLE_BROKERD] = {"brokerd", "brokerd.fake", broker_schemas},
	[ROLE_WATCHD] = {"watchd", "watchd.fake", watch_schemas},
};

static int fake_check(const struct conf *conf, struct buf *errors)
{
	if (strcmp(conf_str(conf, fake_key), "bad") != 0)
		return 0;
	buf_printf(errors, "%s: \"bad\" is not good; write anything else\n", fake_key);
	return -ERR_CONFIG;
}

static int fake_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	(void)ret_why; /* fake_check has refused what is to be refused */
	daemon_status(d, "fake, reloaded %s", conf_str(next, fake_key));
	return 0;
}

static void fake_drain(struct daemon *d)
{
	if (!does("stubborn"))
		daemon_drained(d);
}

static void fake_fini(struct daemon *d)
{
	ev_timer_stop(&fake.timer);
	for (size_t i = 0; i < d->n_listeners && fake.accept[i].cb != NULL; i++)
		ev_io_stop(&fake.accept[i]);
}

static void fake_on_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	struct buf body;

	stats_set(d->stats, STAT_PEERS, stats_get(d->stats, STAT_PEERS) + (up ? 1 : UINT64_MAX));
	if (!up || d->info->role != ROLE_BROKERD || role != ROLE_WALSTREAMD || d->n_listeners == 0)
		return;
	buf_init(&body, 64);
	buf_put_be32(&body, generation);
	if (daemon_relay(d, role, RELAY_RING_ATTACH, &body, &d->listeners[0].fd, 1) != 0)
		fprintf(stderr, "fake worker: cannot relay\n");
	buf_free(&body);
}

/* Body and descriptor came through as they were sent. */
static int fake_on_relay(struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	uint32_t generation = rd_be32(&msg->body);
	int err = rd_end(&msg->body);

	if (err == 0 &&
		(from_role != (uint32_t)ROLE_BROKERD || kind != (uint32_t)RELAY_RING_ATTACH ||
			generation != d->generation || msg->n_fds != 1))
		err = -ERR_MALFORMED;
	stats_add(d->stats, STAT_RELAYS, 1);
	return err;
}

/* What a command gets that the supervisor hands over with its client. */
static void cmd_sessions(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	(void)req;
	(void)arg;
	(void)ctl_row(
		c, json_pack("{s:i}", "fake_pid", (int)getpid())); /* one row needs no pause */
	ctl_ok(c);
}

static const struct ctl_handler fake_commands[] = {{"mqtt.sessions", cmd_sessions}, {NULL, NULL}};

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *name = slash != NULL ? slash + 1 : argv[0];
	enum role role;

	if (role_parse(name, &role) != 0) {
		fprintf(stderr, "fake worker: %s is no worker's name\n", name);
		return 1;
	}
	fake_key = fake_roles[role].key;
	read_deed(name);
	if (does("version"))
		say_other_version(role);
	const struct daemon_info info = {
		.name = fake_roles[role].name,
		.role = role,
		.schemas = fake_roles[role].schemas,
		.commands = fake_commands,
		.stats_rows = fake_stats,
		.n_stats_rows = ARRAY_LEN(fake_stats),
		.check = fake_check,
		.init = fake_init,
		.reload = fake_reload,
		.drain = fake_drain,
		.fini = fake_fini,
		.on_peer = fake_on_peer,
		.on_relay = fake_on_relay,
	};

	return daemon_main(&info, argc, argv);
}
