/* SPDX-License-Identifier: PostgreSQL */
/*
 * The state machine of the worker `postgres`: prepares the data directory, starts or adopts the
 * postmaster, waits until it takes connections, has the schema applied, watches, stops.
 *
 * Context: event thread of the worker. What blocks runs in a helper process (cluster_prepare.c,
 * cluster_schema.c); helpers and postmaster are watched by pidfd.
 *
 * State:
 *   PREPARING --helper ok--> CLEARING --nobody of a dead postmaster left--> STARTING --"ready" in
 *     postmaster.pid--> SCHEMA --helper ok--> UP
 *   PREPARING --postmaster alive already (adopted)--> STARTING
 *   STARTING --postmaster exits--> CLEARING, START_TRIES times; then the worker exits 1
 *   SCHEMA, UP --postmaster exits--> the worker exits 1
 *   SCHEMA --helper says EXIT_CONFIG--> STOPPING, then exit 78
 *   any --STOP--> STOPPING --postmaster and helper gone--> drained
 *
 * Invariants:
 *   1. At most one helper and one postmaster are watched.
 *   2. The postmaster is signalled by its pidfd only: never a stranger who got its pid.
 *
 * On crash: a killed worker takes its helper along (PDEATHSIG) and leaves the postmaster running;
 * the next worker adopts it. A killed postmaster may leave backends that hold its shared memory:
 * CLEARING waits for them, and ends them if they do not go by themselves.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/pg/pgconf.h"
#include "supervisor/cluster.h"

#define CLUSTER_MAGIC 0x50a7c1e5U
#define TICK_MS 100
#define START_TRIES 5
#define START_RETRY_MS 1000
#define SLOW_START_MS 2000    /* from then on the status says what we wait for */
#define ORPHANS_QUIT_MS 5000  /* backends without a postmaster: asked to go */
#define ORPHANS_KILL_MS 15000 /* ended */
#define FAST_STOP_MS 30000    /* then immediate */

MEM_TYPE(mem_cluster, "embedded cluster");

enum cluster_state {
	CLUSTER_PREPARING,
	CLUSTER_CLEARING,
	CLUSTER_STARTING,
	CLUSTER_SCHEMA,
	CLUSTER_UP,
	CLUSTER_STOPPING,
	CLUSTER_ENDED
};

/* A process that we watch; pidfd -1: none. */
struct watched {
	pid_t pid;
	int pidfd;
	bool is_child;
	struct ev_io io;
};

struct cluster {
	uint32_t magic;
	struct daemon *d;
	struct cluster_paths paths;
	enum cluster_state state;
	struct watched helper;
	struct watched postmaster;
	struct ev_timer tick;
	uint64_t since_ms; /* when the present wait began */
	int tries;
	int final_status; /* of the process, after STOPPING */
};

static void state_set(struct cluster *c, enum cluster_state state)
{
	static const char *const names[] = {
		"preparing", "clearing", "starting", "schema", "up", "stopping", "ended"};
	log_debug("pg.state", "%s -> %s", names[c->state], names[state]);
	c->state = state;
	c->since_ms = ev_now_ms();
}

/* ---- processes ---- */

static int watch(struct watched *w, pid_t pid, bool is_child)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (fd < 0)
		return -errno;
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC); /* is set anyway */
	w->pid = pid;
	w->pidfd = fd;
	w->is_child = is_child;
	ev_io_set(&w->io, fd, EV_READ);
	return 0;
}

static void unwatch(struct watched *w)
{
	ev_io_stop(&w->io);
	if (w->pidfd >= 0)
		(void)close(w->pidfd); /* a handle, nothing behind it */
	w->pidfd = -1;
}

static void watched_signal(const struct watched *w, int signo)
{
	if (w->pidfd >= 0)
		(void)syscall(
			SYS_pidfd_send_signal, w->pidfd, signo, NULL, 0); /* gone is fine too */
}

/* Its exit status in words of waitpid, 0 for a process that is not our child. It has exited. */
static int reap(struct watched *w)
{
	int status = 0;
	if (w->is_child && waitpid(w->pid, &status, 0) != w->pid)
		status = 0;
	unwatch(w);
	return status;
}

/* fork with signals as a new program wants them; only descriptors 0 to 2 are left in the child. */
static pid_t fork_clean(void)
{
	sigset_t all, before;
	sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, &before); /* cannot fail with these arguments */
	pid_t pid = fork();
	if (pid == 0) {
		for (int signo = 1; signo < NSIG; signo++)
			(void)signal(signo, SIG_DFL); /* some cannot be changed, and need not */
		sigemptyset(&all);
		(void)sigprocmask(SIG_SETMASK, &all, NULL);
		proc_close_from(3);
		return 0;
	}
	int err = errno;
	(void)sigprocmask(SIG_SETMASK, &before, NULL);
	errno = err;
	return pid;
}

/* Runs fn in a process (and group) of its own that dies with this worker. */
static int helper_start(struct cluster *c, int (*fn)(const struct cluster_paths *p))
{
	pid_t parent = getpid();
	pid_t pid = fork_clean();
	if (pid == 0) {
		(void)setpgid(0, 0); /* the parent does the same, whoever is first */
		if (proc_die_with_parent(SIGKILL, parent) != 0)
			_exit(1);
		_exit(fn(&c->paths));
	}
	if (pid < 0)
		return -errno;
	(void)setpgid(pid, pid); /* see above */
	int err = watch(&c->helper, pid, true);
	if (err != 0)
		(void)kill(pid, SIGKILL); /* not watched, so not used */
	return err;
}

static void helper_kill(struct cluster *c)
{
	if (c->helper.pidfd >= 0)
		(void)kill(-c->helper.pid, SIGKILL); /* not reaped yet: the pid is still its own */
}

/* ---- ends ---- */

static void cluster_end(struct cluster *c, int status)
{
	state_set(c, CLUSTER_ENDED);
	ev_timer_stop(&c->tick);
	daemon_exit(c->d, status);
}

/* STOPPING is over when nobody is left to wait for. */
static void stop_check(struct cluster *c)
{
	if (c->helper.pidfd < 0 && c->postmaster.pidfd < 0)
		cluster_end(c, c->final_status);
}

static void cluster_stop(struct cluster *c, int final_status)
{
	if (c->state >= CLUSTER_STOPPING)
		return;
	state_set(c, CLUSTER_STOPPING);
	c->final_status = final_status;
	helper_kill(c);
	watched_signal(&c->postmaster, SIGINT);
	daemon_status(c->d, "stopping");
	ev_timer_start(&c->tick, FAST_STOP_MS);
	stop_check(c);
}

/* ---- start ---- */

static void start_failed(struct cluster *c, const char *what, int err)
{
	log_error("pg.start", "cannot %s: %s", what, err_str(err));
	cluster_end(c, 1);
}

static void postmaster_spawn(struct cluster *c)
{
	char *bindir = NULL;
	const char *why = NULL;
	if (cluster_choose_bindir(&c->paths, CLUSTER_LIB_ROOT, &bindir, &why) != 0) {
		log_error("pg.bindir", "%s", why);
		cluster_end(c, EXIT_CONFIG);
		return;
	}
	char *program = xasprintf("%s/postgres", bindir);
	free(bindir);
	pid_t pid = fork_clean();
	if (pid == 0) {
		char dash_d[] = "-D";
		char *const argv[] = {program, dash_d, c->paths.data, NULL};
		(void)setsid(); /* Ctrl-C is for the supervisor */
		(void)dup2(STDERR_FILENO, STDOUT_FILENO);
		(void)execv(program, argv);
		_exit(127);
	}
	int err = pid < 0 ? -errno : 0;
	free(program);
	if (err == 0)
		err = watch(&c->postmaster, pid, true);
	if (err != 0) {
		start_failed(c, "start the PostgreSQL server", err);
		return;
	}
	state_set(c, CLUSTER_STARTING);
	daemon_status(c->d, "starting");
	ev_timer_start(&c->tick, TICK_MS);
}

/* True: a postmaster that outlived its worker is watched from now on. */
static bool postmaster_adopt(struct cluster *c)
{
	struct postmaster_file file;
	if (cluster_read_pidfile(c->paths.data, &file) != 0 ||
		watch(&c->postmaster, file.pid, false) != 0)
		return false;
	/* Only now that the pidfd holds it can the process be looked at: the pid cannot change
	 * hands between the look and the use. */
	if (!cluster_process_is_ours(file.pid, c->paths.data)) {
		unwatch(&c->postmaster);
		return false;
	}
	log_info("pg.adopt", "adopting the running PostgreSQL server, pid %d", (int)file.pid);
	watched_signal(&c->postmaster, SIGHUP); /* our settings may have changed */
	state_set(c, CLUSTER_STARTING);
	daemon_status(c->d, "adopted, starting");
	ev_timer_start(&c->tick, TICK_MS);
	return true;
}

static void clear_one(pid_t pid, void *arg)
{
	(void)kill(pid, *(const int *)arg); /* gone is fine too */
}

/*
 * A dead postmaster that init has not collected yet still counts as alive for PostgreSQL's lock
 * file, and in a container without an init it does so for ever. No process works in the data
 * directory any more (the caller has looked), and nobody can take the lock over while the zombie
 * is there: the files are removed safely.
 */
static void lock_file_clear(struct cluster *c)
{
	struct postmaster_file file;
	if (cluster_read_pidfile(c->paths.data, &file) != 0 || !cluster_process_is_zombie(file.pid))
		return;
	log_info("pg.lock", "removing the lock files of the dead PostgreSQL server, pid %d",
		(int)file.pid);
	/* The folder of the socket is ours alone: its lock was the same server's. */
	char *const paths[] = {xasprintf("%s/.s.PGSQL.5432.lock", c->paths.sockets),
		xasprintf("%s/postmaster.pid", c->paths.data)};
	for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
		if (unlink(paths[i]) != 0 && errno != ENOENT)
			log_warning("pg.lock", "cannot remove %s: %s, ignoring", paths[i],
				err_str(errno));
		free(paths[i]);
	}
}

/* Backends that outlived their postmaster hold its shared memory; a new one would not start. */
static void clearing_tick(struct cluster *c)
{
	uint64_t waited_ms = ev_now_ms() - c->since_ms;
	int signo = waited_ms >= ORPHANS_KILL_MS ? SIGKILL : SIGQUIT;
	size_t n = cluster_each_process(
		c->paths.data, waited_ms >= ORPHANS_QUIT_MS ? clear_one : NULL, &signo);
	if (n == 0) {
		lock_file_clear(c);
		postmaster_spawn(c);
		return;
	}
	daemon_status(c->d, "waiting for %zu processes of a PostgreSQL server that died", n);
	ev_timer_start(&c->tick, waited_ms >= ORPHANS_QUIT_MS ? START_RETRY_MS : TICK_MS);
}

static void cluster_begin(struct cluster *c)
{
	if (postmaster_adopt(c))
		return;
	state_set(c, CLUSTER_CLEARING);
	clearing_tick(c);
}

static void starting_tick(struct cluster *c)
{
	struct postmaster_file file;
	if (c->postmaster.pidfd < 0) {
		/* It has exited, and the pause after that is over. */
		cluster_begin(c);
		return;
	}
	if (cluster_read_pidfile(c->paths.data, &file) == 0 && file.pid == c->postmaster.pid &&
		file.ready) {
		state_set(c, CLUSTER_SCHEMA);
		daemon_status(c->d, "checking the schema");
		int err = helper_start(c, cluster_schema);
		if (err != 0)
			start_failed(c, "run the schema's helper", err);
		return;
	}
	uint64_t waited_ms = ev_now_ms() - c->since_ms;
	if (waited_ms >= SLOW_START_MS || cluster_in_recovery(c->paths.data))
		daemon_status(c->d, "%s, %llu s",
			cluster_in_recovery(c->paths.data) ? "recovering from a crash" : "starting",
			(unsigned long long)(waited_ms / 1000));
	ev_timer_start(&c->tick, TICK_MS);
}

static void stopping_tick(struct cluster *c)
{
	log_warning("pg.stop",
		"PostgreSQL did not stop within %d s, stopping it at once; it will "
		"recover when it starts",
		FAST_STOP_MS / 1000);
	watched_signal(&c->postmaster, SIGQUIT);
}

static void on_tick(void *arg)
{
	struct cluster *c;
	OBJ_CAST(c, arg, CLUSTER_MAGIC);
	static void (*const by_state[])(struct cluster *) = {
		[CLUSTER_CLEARING] = clearing_tick,
		[CLUSTER_STARTING] = starting_tick,
		[CLUSTER_STOPPING] = stopping_tick,
	};
	ASSERT(c->state < ARRAY_LEN(by_state) && by_state[c->state] != NULL);
	by_state[c->state](c);
}

/* ---- exits ---- */

static void schema_done(struct cluster *c)
{
	int major = 0;
	if (cluster_data_version(c->paths.data, &major) != 0)
		major = 0; /* was read a moment ago; the server runs, whatever became of the file */
	state_set(c, CLUSTER_UP);
	c->tries = 0;
	log_info("pg.up", "PostgreSQL %d is up, pid %d", major, (int)c->postmaster.pid);
	daemon_status(c->d, "PostgreSQL %d, pid %d", major, (int)c->postmaster.pid);
	daemon_ready(c->d);
}

static void on_helper_exit(int fd, short what, void *arg)
{
	struct cluster *c;
	OBJ_CAST(c, arg, CLUSTER_MAGIC);
	(void)fd, (void)what; /* the pidfd, which says one thing only */
	int status = reap(&c->helper);
	bool config = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_CONFIG;
	if (c->state == CLUSTER_STOPPING)
		stop_check(c);
	else if (status != 0 && c->state == CLUSTER_SCHEMA && config)
		cluster_stop(c, EXIT_CONFIG);
	else if (status != 0)
		cluster_end(c, config ? EXIT_CONFIG : 1);
	else if (c->state == CLUSTER_PREPARING)
		cluster_begin(c);
	else
		schema_done(c);
}

static void on_postmaster_exit(int fd, short what, void *arg)
{
	struct cluster *c;
	OBJ_CAST(c, arg, CLUSTER_MAGIC);
	(void)fd, (void)what; /* the pidfd, which says one thing only */
	int status = reap(&c->postmaster);
	if (c->state == CLUSTER_STOPPING) {
		stop_check(c);
		return;
	}
	char how[64] = "went away";
	if (WIFSIGNALED(status))
		(void)snprintf(how, sizeof(how), "was ended by signal %d", WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		(void)snprintf(how, sizeof(how), "ended with status %d", WEXITSTATUS(status));
	if (c->state == CLUSTER_STARTING && ++c->tries < START_TRIES) {
		log_warning("pg.start", "PostgreSQL %s while starting, retrying in %d ms", how,
			START_RETRY_MS);
		ev_timer_start(&c->tick, START_RETRY_MS);
		return;
	}
	log_error("pg.died", "PostgreSQL %s; its own lines above say why", how);
	cluster_end(c, 1);
}

/* ---- daemon_info ---- */

static struct cluster *cluster_of(struct daemon *d)
{
	struct cluster *c;
	OBJ_CAST(c, d->self, CLUSTER_MAGIC);
	return c;
}

static void cluster_free(struct cluster *c)
{
	free(c->paths.state_dir);
	free(c->paths.data);
	free(c->paths.sockets);
	free(c->paths.bindir);
	free(c->paths.sql_dir);
	free(c->paths.user);
	c->magic = 0;
	mem_free(&mem_cluster, c);
}

int cluster_init(struct daemon *d)
{
	if (geteuid() == 0) {
		log_error("pg.root",
			"PostgreSQL does not run as root; name an ordinary user (user = "
			"\"howdah\") in the configuration");
		return -ERR_CONFIG;
	}
	if (!pgconf_is_embedded(d->conf)) {
		log_error(
			"pg.mode", "postgres.mode is \"external\"; this worker has nothing to run");
		return -ERR_CONFIG;
	}
	struct cluster *c = mem_new(&mem_cluster, sizeof(*c));
	c->magic = CLUSTER_MAGIC;
	c->d = d;
	c->helper.pidfd = -1;
	c->postmaster.pidfd = -1;
	c->paths = (struct cluster_paths){
		.state_dir = xstrdup(d->state_dir),
		.data = xasprintf("%s/postgres", d->state_dir),
		.sockets = xasprintf("%s/postgres", d->run_dir),
		.bindir = xstrdup(conf_str(d->conf, "postgres.bindir")),
		.sql_dir = xasprintf("%s/sql", d->datadir),
		.user = xstrdup(d->user),
	};
	ev_timer_init(&c->tick, d->loop, "postgres tick", on_tick, c);
	ev_io_init(&c->helper.io, d->loop, "postgres helper", on_helper_exit, c);
	ev_io_init(&c->postmaster.io, d->loop, "postmaster", on_postmaster_exit, c);
	daemon_status(d, "preparing the data directory");
	int err = helper_start(c, cluster_prepare);
	if (err != 0) {
		cluster_free(c);
		return err;
	}
	d->self = c;
	return 0;
}

int cluster_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	(void)ret_why; /* never refused: what changes here takes effect at the next start */
	if (strcmp(conf_str(next, "postgres.bindir"), conf_str(d->conf, "postgres.bindir")) != 0)
		log_warning("pg.reload",
			"postgres.bindir has changed; it takes effect when the suite is "
			"started again");
	return 0;
}

void cluster_drain(struct daemon *d)
{
	cluster_stop(cluster_of(d), 0);
}

void cluster_fini(struct daemon *d)
{
	struct cluster *c = cluster_of(d);
	d->self = NULL;
	ev_timer_stop(&c->tick);
	helper_kill(c);
	unwatch(&c->helper);
	unwatch(&c->postmaster);
	cluster_free(c);
}
