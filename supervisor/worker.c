/* SPDX-License-Identifier: PostgreSQL */
/*
 * One worker's life; worker.h has the contract, fsm.h the states.
 *
 * Context: event thread of the supervisor.
 *
 * Invariants:
 *   1. pid != 0 exactly while fsm_has_process(state), between two callbacks.
 *   2. A worker's messages are read only until its exit is known and its channel is at its end;
 *      then channel is NULL, and the next life has a generation of its own.
 *   3. Nothing in a message of a worker is believed beyond its reader: what is malformed or cannot
 *      be at this point is the event GARBLED (or the FSM's answer), never an ASSERT.
 *   4. The page can neither shrink nor grow (sealed), so reading it cannot fault.
 *
 * On crash of the supervisor: the workers see EOF and SIGTERM and finish in good order.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/base/stats.h"
#include "common/ipc/worker_proto.h"
#include "supervisor/spawn.h"
#include "supervisor/worker.h"

#define WORKER_MAGIC 0x3a81e7d5U
/* A dead process's channel is at its end as soon as it is read; this is only a back-up. */
#define LINGER_MS 500

MEM_TYPE(mem_worker, "worker");

static const char *name_of(const struct worker *w)
{
	return w->info->name;
}

static struct death *death_of(struct worker *w)
{
	return &w->host->deaths.of[w->info->role];
}

const struct death *worker_death(const struct worker *w)
{
	return &w->host->deaths.of[w->info->role];
}

const char *worker_state_str(const struct worker *w)
{
	switch (w->state) {
	case FSM_INIT:
	case FSM_INIT_RELOAD:
		return fsm_state_str(FSM_STARTING);
	case FSM_DYING_NEW:
	case FSM_REFUSED:
		return fsm_state_str(FSM_DYING);
	case FSM_RESTARTING:
		return fsm_state_str(FSM_STOPPING);
	default:
		return fsm_state_str(w->state);
	}
}

/* Text of a worker as one line that JSON takes. */
static void take_line(const char *text, char *out, size_t out_size)
{
	json_t *probe;

	snprintf(out, out_size, "%s", text);
	for (char *p = out; *p != '\0'; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = ' ';
	probe = json_string(out);
	if (probe == NULL)
		for (char *p = out; *p != '\0'; p++)
			if ((unsigned char)*p >= 0x80)
				*p = '?';
	json_decref(probe);
}

static void set_why(struct worker *w, char *text)
{
	if (w->why != NULL) { /* the first reason is the one that counts */
		free(text);
		return;
	}
	w->why = text;
}

/* ---- messages to the worker ---- */

static void send_body(struct worker *w, uint32_t type, uint32_t id, struct buf *body, int fd)
{
	int err = 0;

	if (w->channel != NULL)
		err = imsg_send(w->channel, type, id, body, &fd, fd >= 0 ? 1 : 0);
	if (err != 0)
		log_warning("worker.send", "%s: cannot send %s: %s", name_of(w),
			worker_msg_str(type), err_str(err));
	if (body != NULL)
		buf_free(body);
}

static void send_text(struct worker *w, uint32_t type, const char *text, int fd)
{
	struct buf body;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_text(&body, text);
	send_body(w, type, 0, &body, fd);
}

void worker_send_peer(struct worker *w, uint32_t role, bool up, uint32_t generation)
{
	struct worker_peer m = {.role = role, .up = up, .generation = generation};
	struct buf body;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_peer(&body, &m);
	send_body(w, WORKER_MSG_PEER, 0, &body, -1);
}

void worker_send_relay(struct worker *w, uint32_t from, uint32_t kind, const struct imsg *msg)
{
	struct worker_relay head = {.role = from, .kind = kind};
	struct buf body;
	int err = 0;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_relay(&body, &head);
	buf_put(&body, msg->body.p, msg->body.left_bytes);
	if (w->channel != NULL)
		err = imsg_send(w->channel, WORKER_MSG_RELAY, 0, &body, msg->fds, msg->n_fds);
	if (err != 0)
		log_warning("worker.relay", "%s: cannot pass on a message from %s: %s", name_of(w),
			role_str(from), err_str(err));
	buf_free(&body);
}

void worker_send_log_level(struct worker *w, const char *level)
{
	send_text(w, WORKER_MSG_LOG_LEVEL, level, -1);
}

int worker_send_control(struct worker *w, const char *line, uid_t uid, int fd)
{
	struct worker_control m = {.line = (char *)(uintptr_t)line, .uid = uid};
	struct buf body;
	int err = -ERR_CLOSED;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_control(&body, &m);
	if (w->channel != NULL)
		err = imsg_send(w->channel, WORKER_MSG_CONTROL, 0, &body, &fd, 1);
	buf_free(&body);
	return err;
}

/* ---- actions of the state machine ---- */

static void act_configure(struct worker *w)
{
	const struct worker_host *h = w->host;
	struct worker_config m = {
		.node = (char *)(uintptr_t)h->node,
		.instance = h->place->instance,
		.state_dir = h->place->state_dir,
		.run_dir = h->place->run_dir,
		.user = h->place->user,
		.log_level = (char *)(uintptr_t)h->log_level,
		.enabled_roles = h->settings->roles,
	};
	struct buf body;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_config(&body, &m);
	send_body(w, WORKER_MSG_CONFIG, 0, &body, h->settings->config_fd);
	for (size_t i = 0; i < h->listeners->n; i++)
		if (h->listeners->items[i].role == w->info->role)
			send_text(w, WORKER_MSG_LISTENER, h->listeners->items[i].url,
				h->listeners->items[i].fd);
	send_body(w, WORKER_MSG_START, 0, NULL, -1);
	w->has = h->settings->serial;
}

static void act_send_reload(struct worker *w)
{
	struct buf body;

	buf_init(&body, IMSG_BODY_MAX);
	worker_put_text(&body, w->offer_level);
	w->reload_out = true;
	send_body(w, WORKER_MSG_RELOAD, ++w->reload_id, &body, w->offer_fd);
}

static void act_send_ping(struct worker *w)
{
	w->pings_out++;
	send_body(w, WORKER_MSG_PING, ++w->ping_id, NULL, -1);
}

static void act_send_stop(struct worker *w)
{
	send_body(w, WORKER_MSG_STOP, 0, NULL, -1);
}

static void act_abort(struct worker *w)
{
	if (!w->reaped)
		kill(w->pid, SIGABRT); /* it is our child and not reaped: the pid is its */
}

static void act_kill(struct worker *w)
{
	if (!w->reaped) /* its last words may come later than its exit */
		kill(w->pid, SIGKILL);
}

static void act_announce_up(struct worker *w)
{
	w->announced = true;
	w->host->ops->on_announce(w, true, w->host->arg);
}

static void act_announce_down(struct worker *w)
{
	if (!w->announced)
		return;
	w->announced = false;
	w->host->ops->on_announce(w, false, w->host->arg);
}

static void act_tally(struct worker *w)
{
	struct death *d = death_of(w);

	d->count++;
	d->at = (int64_t)time(NULL);
}

static void act_warn_stop(struct worker *w)
{
	log_warning("worker.stop", "%s: did not stop in good order: %s", name_of(w),
		death_of(w)->last_exit);
}

static void act_reset_backoff(struct worker *w)
{
	ev_backoff_reset(&w->backoff);
	ev_backoff_reset(&w->throttle);
}

static void act_timer_start(struct worker *w)
{
	ev_timer_start(&w->timer, w->times->start_ms);
}

static void act_timer_ping(struct worker *w)
{
	/* A quarter of jitter: not all workers wake at once. */
	uint64_t after =
		w->times->ping_ms - (ev_now_us() + w->info->role * 7919) % (w->times->ping_ms / 4);

	w->ping_due_ms = ev_now_ms() + after;
	ev_timer_start(&w->timer, after);
}

static void act_timer_stop(struct worker *w)
{
	ev_timer_start(&w->timer, w->times->stop_ms);
}

static void act_timer_hurry(struct worker *w)
{
	ev_timer_start(&w->timer, w->times->hurry_ms);
}

static void act_timer_kill(struct worker *w)
{
	ev_timer_start(&w->timer, w->times->kill_ms);
}

static void wait_for_next_try(struct worker *w, struct ev_backoff *b)
{
	w->next_try_ms = ev_backoff_next_ms(b);
	ev_timer_start(&w->timer, w->next_try_ms);
	log_warning("worker.died", "%s: died%s: %s, starting again in %u ms", name_of(w),
		b == &w->throttle ? " before it was ready" : "", death_of(w)->last_exit,
		(unsigned)w->next_try_ms);
}

static void act_timer_backoff(struct worker *w)
{
	if (w->up_ms != 0 && ev_now_ms() - w->up_ms >= w->times->stable_ms)
		act_reset_backoff(w);
	wait_for_next_try(w, &w->backoff);
}

static void act_timer_throttle(struct worker *w)
{
	wait_for_next_try(w, &w->throttle);
}

static void act_timer_none(struct worker *w)
{
	ev_timer_stop(&w->timer);
}

static void act_spawn(struct worker *w);

/* VERDICT is given by on_reloaded, which has the text. */
static void act_nothing(struct worker *w)
{
	(void)w;
}

static void (*const actions[FSM_ACTION_COUNT])(struct worker *w) = {
	[FSM_ACT_END] = act_nothing,
	[FSM_ACT_SPAWN] = act_spawn,
	[FSM_ACT_CONFIGURE] = act_configure,
	[FSM_ACT_ANNOUNCE_UP] = act_announce_up,
	[FSM_ACT_ANNOUNCE_DOWN] = act_announce_down,
	[FSM_ACT_SEND_RELOAD] = act_send_reload,
	[FSM_ACT_VERDICT] = act_nothing,
	[FSM_ACT_SEND_PING] = act_send_ping,
	[FSM_ACT_SEND_STOP] = act_send_stop,
	[FSM_ACT_ABORT] = act_abort,
	[FSM_ACT_KILL] = act_kill,
	[FSM_ACT_TALLY] = act_tally,
	[FSM_ACT_WARN_STOP] = act_warn_stop,
	[FSM_ACT_RESET_BACKOFF] = act_reset_backoff,
	[FSM_ACT_TIMER_START] = act_timer_start,
	[FSM_ACT_TIMER_PING] = act_timer_ping,
	[FSM_ACT_TIMER_STOP] = act_timer_stop,
	[FSM_ACT_TIMER_HURRY] = act_timer_hurry,
	[FSM_ACT_TIMER_KILL] = act_timer_kill,
	[FSM_ACT_TIMER_BACKOFF] = act_timer_backoff,
	[FSM_ACT_TIMER_THROTTLE] = act_timer_throttle,
	[FSM_ACT_TIMER_NONE] = act_timer_none,
};

static void log_step(struct worker *w, enum fsm_state from, enum fsm_event event)
{
	log_debug("worker.state", "%s: %s -> %s by %s", name_of(w), fsm_state_str(from),
		fsm_state_str(w->state), fsm_event_str(event));
	if (w->state == from)
		return;
	if (w->state == FSM_UP)
		log_info("worker.up", "%s: up, pid %ld", name_of(w), (long)w->pid);
	else if (w->why != NULL &&
		 (w->state == FSM_DYING || w->state == FSM_DYING_NEW || w->state == FSM_REFUSED))
		log_error("worker.kill", "%s: pid %ld: %s", name_of(w), (long)w->pid, w->why);
	else if (w->state == FSM_HELD)
		log_error("worker.held",
			"%s: stays down: %s; mend what its log lines say, then pgctl reload",
			name_of(w), death_of(w)->last_exit);
	else if (w->state == FSM_DOWN && fsm_has_process(from))
		log_info("worker.down", "%s: stopped", name_of(w));
}

static void one_step(struct worker *w, enum fsm_event event)
{
	enum fsm_state from = w->state;
	const struct fsm_step *step = fsm_step(from, event);

	w->state = step->next;
	if (w->state == FSM_UP && from != FSM_UP)
		w->up_ms = ev_now_ms();
	for (size_t i = 0; i < FSM_ACTIONS_MAX && step->actions[i] != FSM_ACT_END; i++)
		actions[step->actions[i]](w);
	log_step(w, from, event);
	if (w->state != from)
		w->host->ops->on_state(w, from, w->host->arg);
}

static void save_deaths(struct worker *w)
{
	const char *state_dir = w->host->place->state_dir;
	int err = deaths_save(&w->host->deaths, state_dir);

	if (err != 0)
		log_limited(LOG_LEVEL_WARNING, "worker.deaths",
			"cannot write %s/deaths.json: %s; status forgets it with this process",
			state_dir, err_str(err));
}

void worker_event(struct worker *w, enum fsm_event event)
{
	OBJ_CHECK(w, WORKER_MAGIC);
	one_step(w, event);
	while (w->spawn_failed) {
		w->spawn_failed = false;
		death_set(&death_of(w)->last_exit, w->why);
		w->why = NULL;
		one_step(w, FSM_EV_EXIT_OTHER);
		save_deaths(w);
	}
}

/* ---- messages from the worker ---- */

static int on_hello(struct worker *w, struct imsg *msg)
{
	struct worker_hello m;
	int err = worker_get_hello(&msg->body, &m);
	bool good;

	if (err != 0)
		return err;
	good = m.version == WORKER_PROTO_VERSION && strcmp(m.build, HOWDAH_VERSION) == 0 &&
	       m.role == (uint32_t)w->info->role;
	if (!good && w->state == FSM_STARTING) {
		char build[64];

		take_line(m.build, build, sizeof(build));
		set_why(w,
			xasprintf("says it is %s of build %s, protocol %u, but this is build %s, "
				  "protocol %d; install one version of the whole package",
				role_str(m.role), build, (unsigned)m.version, HOWDAH_VERSION,
				WORKER_PROTO_VERSION));
	}
	worker_free_hello(&m);
	worker_event(w, good ? FSM_EV_HELLO_OK : FSM_EV_HELLO_BAD);
	return 0;
}

static int on_ready(struct worker *w, struct imsg *msg)
{
	int err = worker_get_nothing(&msg->body);

	if (err == 0)
		worker_event(w, FSM_EV_READY);
	return err;
}

static int on_pong(struct worker *w, struct imsg *msg)
{
	int err = worker_get_nothing(&msg->body);

	if (err == 0 && msg->id > w->ping_id)
		return -ERR_MALFORMED; /* of a PING that was never sent */
	if (err == 0)
		w->pings_out = 0;
	return err;
}

static int on_reloaded(struct worker *w, struct imsg *msg)
{
	struct worker_reloaded m;
	int err = worker_get_reloaded(&msg->body, &m);
	char text[4096];

	if (err != 0)
		return err;
	if (w->state == FSM_UP && (!w->reload_out || msg->id != w->reload_id)) {
		/* The answer to an offer that a later one replaced is only late. */
		bool late = w->reload_out && msg->id < w->reload_id;

		worker_free_reloaded(&m);
		return late ? 0 : -ERR_MALFORMED;
	}
	take_line(m.text, text, sizeof(text));
	w->reload_out = false;
	if (m.ok)
		w->has = w->offered;
	worker_event(w, FSM_EV_RELOADED);
	if (w->state == FSM_UP)
		w->host->ops->on_verdict(w, m.ok, text, w->host->arg);
	worker_free_reloaded(&m);
	return 0;
}

static int on_status(struct worker *w, struct imsg *msg)
{
	char *text = NULL;
	int err = worker_get_text(&msg->body, &text);

	if (err != 0)
		return err;
	take_line(text, w->text, sizeof(w->text));
	free(text);
	worker_event(w, FSM_EV_PROGRESS);
	if (w->state == FSM_INIT || w->state == FSM_INIT_RELOAD)
		w->host->ops->on_progress(w, w->host->arg);
	return 0;
}

static int on_relay(struct worker *w, struct imsg *msg)
{
	struct worker_relay m;
	int err = worker_get_relay(&msg->body, &m);

	if (err == 0 && m.role >= ROLE_COUNT)
		err = -ERR_MALFORMED;
	if (err == 0 && (w->announced || w->state == FSM_INIT || w->state == FSM_INIT_RELOAD))
		w->host->ops->on_relay(w, m.role, m.kind, msg, w->host->arg);
	return err;
}

static int (*const handlers[])(struct worker *w, struct imsg *msg) = {
	[WORKER_MSG_HELLO] = on_hello,
	[WORKER_MSG_READY] = on_ready,
	[WORKER_MSG_PONG] = on_pong,
	[WORKER_MSG_RELOADED] = on_reloaded,
	[WORKER_MSG_STATUS] = on_status,
	[WORKER_MSG_RELAY] = on_relay,
};

static int on_message(struct imsg *msg, void *arg)
{
	struct worker *w;
	OBJ_CAST(w, arg, WORKER_MAGIC);
	if (msg->type >= ARRAY_LEN(handlers) || handlers[msg->type] == NULL)
		return -ERR_MALFORMED;
	if (w->state == FSM_STARTING && msg->type != WORKER_MSG_HELLO)
		return -ERR_STATE;
	return handlers[msg->type](w, msg);
}

/* ---- the end of a life ---- */

static void take_panic_line(struct worker *w)
{
	char line[1024];

	if (*stats_panic_copy(w->page, line, sizeof(line)) != '\0')
		death_set(&death_of(w)->last_assert, xstrdup(line));
}

static void record_death(struct worker *w, pid_t pid)
{
	struct death *d = death_of(w);
	char *how = death_describe(w->wait_status);

	if (w->why != NULL) {
		death_set(&d->last_exit, xasprintf("%s; %s", w->why, how));
		free(how);
	} else {
		death_set(&d->last_exit, how);
	}
	free(w->why);
	w->why = NULL;
	take_panic_line(w);
	if (WIFSIGNALED(w->wait_status) && WCOREDUMP(w->wait_status))
		death_set(&d->core, death_find_core(w->host->place->state_dir, pid));
}

/* Its exit is known and its last words are read. */
static void finish(struct worker *w)
{
	enum fsm_event event = FSM_EV_EXIT_OTHER;
	pid_t pid = w->pid;

	ev_timer_stop(&w->linger);
	imsg_close(&w->channel);
	w->reaped = false;
	w->pid = 0;
	w->reload_out = false;
	if (WIFEXITED(w->wait_status) && WEXITSTATUS(w->wait_status) == 0)
		event = FSM_EV_EXIT_0;
	else if (WIFEXITED(w->wait_status) && WEXITSTATUS(w->wait_status) == EXIT_CONFIG)
		event = FSM_EV_EXIT_CONFIG;
	record_death(w, pid);
	worker_event(w, event); /* counts it */
	save_deaths(w);
}

static void on_linger(void *arg)
{
	struct worker *w;
	OBJ_CAST(w, arg, WORKER_MAGIC);
	finish(w);
}

void worker_reaped(struct worker *w, int wait_status)
{
	OBJ_CHECK(w, WORKER_MAGIC);
	w->reaped = true;
	w->wait_status = wait_status;
	if (w->channel == NULL)
		finish(w);
	else
		ev_timer_start(&w->linger, LINGER_MS);
}

static void on_closed(int err, void *arg)
{
	struct worker *w;
	OBJ_CAST(w, arg, WORKER_MAGIC);
	imsg_close(&w->channel);
	if (w->reaped) {
		finish(w);
		return;
	}
	if (err != 0)
		set_why(w, xasprintf(err == -ERR_LIMIT ? "it does not read its messages (%s)"
						       : "sent a garbled message (%s)",
				   err_str(err)));
	worker_event(w, err != 0 ? FSM_EV_GARBLED : FSM_EV_LOST);
}

static void on_timer(void *arg)
{
	struct worker *w;
	OBJ_CAST(w, arg, WORKER_MAGIC);
	enum fsm_event event = FSM_EV_TIMER;

	if (w->state == FSM_UP) {
		/* If we ourselves were held up, its answers may lie unread. */
		if (ev_now_ms() > w->ping_due_ms + w->times->ping_ms / 2)
			w->pings_out = 0;
		if (w->pings_out >= w->times->ping_misses) {
			set_why(w, xasprintf("hangs: %u pings unanswered", (unsigned)w->pings_out));
			event = FSM_EV_PING_MISSED;
		}
	} else if (w->state >= FSM_STARTING && w->state <= FSM_INIT_RELOAD) {
		set_why(w, xasprintf("hangs: not ready after %u s",
				   (unsigned)(w->times->start_ms / 1000)));
	} else if (w->state == FSM_STOPPING || w->state == FSM_RESTARTING) {
		set_why(w, xstrdup("did not stop in time"));
	}
	worker_event(w, event);
}

/* ---- birth ---- */

static const struct imsg_ops channel_ops = {.on_message = on_message, .on_closed = on_closed};

static int try_spawn(struct worker *w)
{
	const struct worker_host *h = w->host;
	int pair[2], err;
	char *program;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
		err = -errno;
		set_why(w, xasprintf("cannot start: socketpair: %s", err_str(err)));
		return err;
	}
	program = xasprintf("%s/%s", h->libexecdir, name_of(w));
	struct spawn_request req = {
		.program = program,
		.datadir = h->datadir,
		.cwd = h->place->state_dir,
		.generation = w->generation,
		.nofile = w->info->nofile,
		.imsg_fd = pair[1],
		.page_fd = w->page_fd,
		.user = h->place->user,
		.uid = h->place->uid,
		.gid = h->place->gid,
	};
	char *why = NULL;

	err = spawn_worker(&req, &w->pid, &why);
	close(pair[1]);
	free(program);
	if (err != 0) {
		close(pair[0]);
		set_why(w, xasprintf("cannot start: %s", why));
		free(why);
		return err;
	}
	w->channel = imsg_open(h->loop, pair[0], w->generation, &channel_ops, w);
	return 0;
}

static void act_spawn(struct worker *w)
{
	ASSERT(w->pid == 0 && w->channel == NULL);
	w->generation = ++w->host->last_generation;
	memset(w->page, 0, STATS_PAGE_BYTES);
	w->text[0] = '\0';
	w->pings_out = 0;
	w->reload_out = false;
	w->up_ms = 0;
	w->spawned_ms = ev_now_ms();
	w->spawns++;
	free(w->why);
	w->why = NULL;
	w->spawn_failed = try_spawn(w) != 0;
}

void worker_offer(struct worker *w, const struct settings *s, const char *log_level)
{
	OBJ_CHECK(w, WORKER_MAGIC);
	w->offer_fd = s->config_fd;
	w->offer_level = log_level;
	w->offered = s->serial;
	worker_event(w, FSM_EV_RELOAD);
}

static int make_page(struct worker *w)
{
	int err = proc_memfd(name_of(w), STATS_PAGE_BYTES, &w->page_fd);

	if (err != 0)
		return err;
	if (fcntl(w->page_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
		return -errno;
	w->page = mmap(NULL, STATS_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, w->page_fd, 0);
	if (w->page == MAP_FAILED) {
		w->page = NULL;
		return -errno;
	}
	return 0;
}

struct worker *worker_new(struct worker_host *host, uint32_t role)
{
	struct worker *w = mem_new(&mem_worker, sizeof(*w));

	w->magic = WORKER_MAGIC;
	w->host = host;
	w->info = role_info(role);
	w->times = role_times(role);
	w->state = FSM_DOWN;
	w->page_fd = -1;
	w->offer_fd = -1;
	w->backoff = (struct ev_backoff){
		.base_ms = w->times->backoff_base_ms, .cap_ms = w->times->backoff_cap_ms};
	w->throttle = (struct ev_backoff){
		.base_ms = w->times->throttle_base_ms, .cap_ms = w->times->backoff_cap_ms};
	ev_timer_init(&w->timer, host->loop, "worker", on_timer, w);
	ev_timer_init(&w->linger, host->loop, "worker.linger", on_linger, w);
	if (make_page(w) != 0)
		worker_free(&w);
	return w;
}

void worker_free(struct worker **wp)
{
	struct worker *w = *wp;

	if (w == NULL)
		return;
	OBJ_CHECK(w, WORKER_MAGIC);
	*wp = NULL;
	if (w->pid != 0 && !w->reaped) {
		kill(w->pid, SIGKILL);
		while (waitpid(w->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	imsg_close(&w->channel);
	ev_timer_stop(&w->timer);
	ev_timer_stop(&w->linger);
	if (w->page != NULL)
		munmap(w->page, STATS_PAGE_BYTES);
	if (w->page_fd >= 0)
		close(w->page_fd);
	free(w->why);
	w->magic = 0;
	mem_free(&mem_worker, w);
}
