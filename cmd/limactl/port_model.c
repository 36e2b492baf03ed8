#include "cmd/limactl/port_model.h"

#include <errno.h>
#include <string.h>

#include "lib/base/mem.h"

enum {
	LOOK_MS = 500,		/* the host agent looks at counters so often */
	STILL_MS = 1500,	/* no news for so long: nothing moves */
	SOONEST_MS = 50,	/* two changes of state may be this close */
};

void port_model_done(struct port_model *m)
{
	for (size_t i = 0; i < m->n; i++)
		json_decref(m->rows[i].row);
	free(m->rows);
	json_decref(m->index);
	json_decref(m->idle);
	json_decref(m->rules);
	*m = (struct port_model){ 0 };
}

/* An object by row_key() finds among 16,384 rows without a walk. */
static char *row_key(const json_t *row)
{
	return xasprintf("%s\n%s\n%s", port_rows_get(row, "protocol"), port_rows_get(row, "guestAddr"),
			 port_rows_get(row, "hostAddr"));
}

static void index_row(json_t *index, const json_t *row, size_t at)
{
	scoped_free char *key = row_key(row);

	json_object_set_new(index, key, json_integer((json_int_t)at));
}

static struct port_model_row *find(struct port_model *m, const json_t *row)
{
	scoped_free char *key = row_key(row);
	const json_t *at = json_object_get(m->index, key);

	return at ? &m->rows[json_integer_value(at)] : NULL;
}

static void tell(struct port_model *m, const json_t *row, bool gone)
{
	if (m->changed)
		m->changed(m->arg, row, gone);
}

static bool same_state(const json_t *a, const json_t *b)
{
	return streq(port_rows_get(a, "state"), port_rows_get(b, "state")) &&
	       streq(port_rows_get(a, "error"), port_rows_get(b, "error"));
}

static double rate(const struct port_model_row *r, const json_t *row, const char *key, double before,
		   uint64_t ms)
{
	uint64_t was = port_rows_number(r->row, key), is = port_rows_number(row, key);
	double now = is > was ? (double)(is - was) * 1000 / (double)ms : 0;

	return before > 0 && now > 0 ? (before + now) / 2 : now;
}

static void add(struct port_model *m, const json_t *row, uint64_t now_ms)
{
	m->rows = xreallocarray(m->rows, m->n + 1, sizeof(*m->rows));
	index_row(m->index, row, m->n);
	m->rows[m->n++] = (struct port_model_row){ .row = json_incref((json_t *)row), .at_ms = now_ms };
	tell(m, row, false);
}

/* What moved after a long rest did so since the host agent's last look. */
static void update(struct port_model *m, struct port_model_row *r, const json_t *row, uint64_t now_ms)
{
	uint64_t ms = now_ms - r->at_ms;
	bool same = same_state(r->row, row);

	ms = ms > STILL_MS ? LOOK_MS : MAX(ms, (uint64_t)SOONEST_MS);
	r->rates.in = rate(r, row, "bytesIn", r->rates.in, ms);
	r->rates.out = rate(r, row, "bytesOut", r->rates.out, ms);
	r->at_ms = now_ms;
	json_decref(r->row);
	r->row = json_incref((json_t *)row);
	if (!same)
		tell(m, row, false);
}

static void take_rows(struct port_model *m, const json_t *rows, uint64_t now_ms)
{
	const json_t *row;
	size_t i;

	json_array_foreach(rows, i, row) {
		struct port_model_row *r = find(m, row);

		if (r)
			update(m, r, row, now_ms);
		else
			add(m, row, now_ms);
	}
}

/* @keep: rows in @list stay; otherwise they go. */
static void drop_rows_by(struct port_model *m, const json_t *list, bool keep)
{
	json_t *named = json_object();
	const json_t *row;
	size_t i, kept = 0;

	json_array_foreach(list, i, row)
		index_row(named, row, i);
	json_object_clear(m->index);
	for (i = 0; i < m->n; i++) {
		scoped_free char *key = row_key(m->rows[i].row);

		if ((json_object_get(named, key) != NULL) != keep) {
			tell(m, m->rows[i].row, true);
			json_decref(m->rows[i].row);
			continue;
		}
		index_row(m->index, m->rows[i].row, kept);
		m->rows[kept++] = m->rows[i];
	}
	m->n = kept;
	json_decref(named);
}

static void find_idle(struct port_model *m)
{
	json_t *ports = json_array();

	for (size_t i = 0; i < m->n; i++)
		json_array_append(ports, m->rows[i].row);
	json_decref(m->idle);
	m->idle = port_rows_idle(ports, m->rules);
	json_decref(ports);
}

int port_model_take(struct port_model *m, const char *line, uint64_t now_ms, struct error *err)
{
	json_error_t why;
	json_t *root = json_loads(line, 0, &why), *rules = json_object_get(root, "rules");
	const char *type = port_rows_get(root, "type");

	if (!json_is_object(root)) {
		json_decref(root);
		return error_set(err, -EBADMSG, "the host agent's stream has a line that is no event");
	}
	if (!m->index)
		m->index = json_object();
	if (streq(type, "snapshot")) {
		drop_rows_by(m, json_object_get(root, "ports"), true);
		take_rows(m, json_object_get(root, "ports"), now_ms);
	} else if (streq(type, "change")) {
		if (json_array_size(json_object_get(root, "removed")))
			drop_rows_by(m, json_object_get(root, "removed"), false);
		take_rows(m, json_object_get(root, "changed"), now_ms);
	}
	if (rules) {
		json_decref(m->rules);
		m->rules = json_incref(rules);
	}
	find_idle(m);
	json_decref(root);
	return 0;
}

bool port_model_age(struct port_model *m, uint64_t now_ms)
{
	bool moves = false;

	for (size_t i = 0; i < m->n; i++) {
		struct port_rates *r = &m->rows[i].rates;

		if (now_ms - m->rows[i].at_ms > STILL_MS)
			*r = (struct port_rates){ 0 };
		moves |= r->in > 0 || r->out > 0;
	}
	return moves;
}
