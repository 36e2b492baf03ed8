#include "cmd/limactl/port_watch.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cmd/limactl/ha_client.h"
#include "cmd/limactl/port_model.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	DRAW_MS = 100,		/* never more often */
	AGE_MS = 500,		/* while rates fall; also ages in the last column */
	REST_MS = 10000,	/* nothing moves: only the ages */
	LOOK_MS = 200,		/* for the host agent that went */
	PATIENCE_MS = 1000,	/* one that stops is gone in a moment, and its machine was before */
};

static const char stream_path[] = "/v1/ports/events";

struct view {
	const struct port_watch_options *o;
	struct port_model model;
	bool live, color;
	size_t drawn;		/* lines on the screen that are ours */
	uint64_t drawn_ms;
	bool stale;		/* what is on the screen is old */
};

/* --- a line a change ----------------------------------------------------- */

static void print_change(void *arg, const json_t *row, bool gone)
{
	const struct view *v = arg;
	char now[CLOCK_RFC3339_SIZE];

	if (!v->o->all && port_rows_is_dull(row))
		return;
	scoped_free char *line = port_rows_line(row);
	printf("%.19sZ %s%s\n", clock_rfc3339_now(now), gone ? "gone: " : "", line);
}

/* --- a table in place ---------------------------------------------------- */

static void screen_size(size_t *ret_rows, size_t *ret_columns)
{
	struct winsize ws;
	bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_row > 3 && ws.ws_col > 20;

	*ret_rows = known ? ws.ws_row : 24;
	*ret_columns = known ? ws.ws_col : 80;
}

static const char *row_color(const struct view *v, const json_t *row)
{
	const char *state = port_rows_get(row, "state");

	if (!v->color || streq(state, "forwarding"))
		return "";
	return streq(state, "waiting") ? "\033[33m" : "\033[2m";
}

static void add_line(struct view *v, struct buf *out, const char *color, const char *line)
{
	buf_addf(out, "%s%s%s\033[K\n", color, line, *color ? "\033[0m" : "");
	v->drawn++;
}

/* The rows that are shown, in order; borrowed. */
static size_t shown_rows(const struct view *v, const struct port_model_row **ret)
{
	size_t n = 0;

	for (size_t i = 0; i < v->model.n; i++)
		if (v->o->all || !port_rows_is_dull(v->model.rows[i].row))
			ret[n++] = &v->model.rows[i];
	return n;
}

static void draw_rows(struct view *v, struct buf *out, size_t room, size_t columns)
{
	scoped_free const struct port_model_row **rows = xcalloc(v->model.n + 1, sizeof(*rows));
	scoped_text_table struct text_table t = { 0 };
	size_t n = shown_rows(v, rows), idle = json_array_size(v->model.idle), fit;

	fit = n + idle <= room ? n + idle : room - 1;
	port_rows_begin(&t, PORT_RATES);
	for (size_t i = 0; i < fit; i++)
		if (i < n)
			port_rows_add(&t, PORT_RATES, NULL, rows[i]->row, &rows[i]->rates);
		else
			port_rows_add(&t, PORT_RATES, NULL, json_array_get(v->model.idle, i - n),
				      &(struct port_rates){ 0 });
	for (size_t i = 0; i < fit + 1; i++) {
		const json_t *row = !i ? NULL : i <= n ? rows[i - 1]->row :
				    json_array_get(v->model.idle, i - 1 - n);
		scoped_buf struct buf line = { 0 };

		text_table_line(&t, i, columns, &line);
		add_line(v, out, row ? row_color(v, row) : v->color ? "\033[1m" : "", buf_str(&line));
	}
	if (fit < n + idle) {
		scoped_free char *more = xasprintf("… and %zu more", n + idle - fit);

		add_line(v, out, "", more);
	} else if (!fit) {
		add_line(v, out, "", "nothing listens in the guest yet");
	}
}

static void draw(struct view *v)
{
	scoped_buf struct buf out = { 0 };
	size_t rows, columns;

	screen_size(&rows, &columns);
	if (v->drawn)
		buf_addf(&out, "\r\033[%zuA", v->drawn);
	v->drawn = 0;
	/* a line for the head, one that the cursor stands on */
	draw_rows(v, &out, rows - 2, columns - 1);
	buf_add_str(&out, "\033[J");
	fwrite(out.data, 1, out.len, stdout);
	fflush(stdout);
	v->drawn_ms = clock_mono_ms();
	v->stale = false;
}

/* --- the loop ------------------------------------------------------------ */

/* 0, or -EPIPE at the end of the stream. */
static int take_lines(struct view *v, struct ha_stream *s, struct error *err)
{
	int rc;

	for (;;) {
		scoped_free char *line = NULL;

		rc = ha_stream_next(s, &line, err);
		if (rc <= 0)
			break;
		v->stale = true;
		if (v->o->json)
			puts(line);
		else if (port_model_take(&v->model, line, clock_mono_ms(), err) < 0)
			return err->code;
	}
	/* not with the code of EPIPE, which says that the stream has ended */
	if (!v->live && fflush(stdout) != 0)
		return error_set(err, -EIO, "write to stdout: %s", error_text(-errno));
	return rc;
}

static int wait_ms(struct view *v)
{
	uint64_t now = clock_mono_ms(), since = now - v->drawn_ms;
	uint64_t rest;

	if (!v->live)
		return REST_MS;
	if (v->stale)
		return since >= DRAW_MS ? 0 : (int)(DRAW_MS - since);
	rest = port_model_age(&v->model, now) ? AGE_MS : REST_MS;
	return since >= rest ? 0 : (int)(rest - since);
}

static int follow(struct view *v, struct ha_stream *s, struct error *err)
{
	struct pollfd p = { .fd = s->fd, .events = POLLIN };
	int rc = 0, wait;

	while (rc == 0 && !interrupt_pending()) {
		/* an interrupt that comes between the look at it and poll() */
		wait = MIN(wait_ms(v), 1000);
		if (wait && poll(&p, 1, wait) > 0)
			rc = take_lines(v, s, err);
		if (v->live && rc == 0 && wait_ms(v) == 0)
			draw(v);
	}
	return rc;
}

/* --- the host agent goes, another comes ----------------------------------- */

static void say_gone(const struct view *v, bool lost)
{
	const char *name = v->o->instance;

	if (lost)
		log_warn("the host agent of `%s` is gone, its machine runs on; waiting for the next one: "
			 "limactl start %s", name, name);
	else
		log_warn("the host agent of `%s` does not answer; waiting for it", name);
}

/* 1: @s is open again; 0: the instance has stopped, or an interrupt came. */
static int come_back(struct view *v, const char *socket, struct ha_stream *s, struct error *err)
{
	uint64_t since = clock_mono_ms();
	bool told = false;

	ha_stream_close(s);
	if (v->live && v->stale)
		draw(v);
	v->drawn = 0;	/* what is said now stands below; the next table, too */
	for (; !interrupt_pending(); poll(NULL, 0, LOOK_MS)) {
		enum port_watch_host is = v->o->look(v->o->arg);

		if (is == PORT_WATCH_STOPPED) {
			log_info("instance `%s` has stopped", v->o->instance);
			return 0;
		}
		if (is == PORT_WATCH_THERE && ha_stream_open(socket, stream_path, s, err) == 0) {
			if (told)
				log_info("the host agent of `%s` is back", v->o->instance);
			return 1;
		}
		if (is == PORT_WATCH_THERE && err->code == -ENOTSUP)
			return err->code;
		if (!told && (is == PORT_WATCH_LOST || clock_mono_ms() - since >= PATIENCE_MS)) {
			say_gone(v, is == PORT_WATCH_LOST);
			told = true;
		}
	}
	return 0;
}

static bool wants_color(void)
{
	const char *no = getenv("NO_COLOR");

	return !(no && *no);
}

static bool is_terminal(void)
{
	const char *term = getenv("TERM");

	return isatty(STDOUT_FILENO) && term && !streq(term, "dumb");
}

static int follow_all(struct view *v, const char *socket, struct ha_stream *s, struct error *err)
{
	int rc;

	do {
		rc = take_lines(v, s, err);
		if (rc == 0)
			rc = follow(v, s, err);
		if (rc == -EPIPE)
			rc = come_back(v, socket, s, err);
	} while (rc > 0);
	return rc;
}

int port_watch(const char *socket, const struct port_watch_options *o, struct error *err)
{
	scoped_ha_stream struct ha_stream s = { .fd = -1 };
	struct view v = { .o = o, .live = o->live && !o->json && is_terminal() };
	int rc;

	if (ha_stream_open(socket, stream_path, &s, err) < 0)
		return error_wrap(err, "port list --watch %s", o->instance);
	v.color = v.live && wants_color();
	if (!v.live) {
		v.model.changed = print_change;
		v.model.arg = &v;
	}
	if (v.live)
		fputs("\033[?25l", stdout);	/* no cursor: it would jump about */
	rc = follow_all(&v, socket, &s, err);
	if (v.live) {
		if (v.stale)
			draw(&v);
		fputs("\033[?25h", stdout);
		fflush(stdout);
	}
	port_model_done(&v.model);
	return rc;
}
