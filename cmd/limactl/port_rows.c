#include "cmd/limactl/port_rows.h"

#include <string.h>
#include <time.h>

#include "cmd/limactl/port_spec.h"
#include "cmd/limactl/ui.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	CELL_MAX_BYTES = 200,
	RATE_WIDTH = sizeof("1023 KiB/s") - 1,
};

static const char nothing[] = "–";

const char *port_rows_get(const json_t *row, const char *key)
{
	const char *s = json_string_value(json_object_get(row, key));

	return s ? s : "";
}

uint64_t port_rows_number(const json_t *row, const char *key)
{
	json_int_t v = json_integer_value(json_object_get(row, key));

	return v > 0 ? (uint64_t)v : 0;
}

bool port_rows_is_dull(const json_t *row)
{
	return streq(port_rows_get(row, "state"), "not-forwarded") && !*port_rows_get(row, "error");
}

/* --- cells --------------------------------------------------------------- */

static void add_text(struct text_table *t, const char *s)
{
	strv_take(&t->cells, *s ? log_escape(s, CELL_MAX_BYTES) : xstrdup(nothing));
}

static void add_bytes(struct text_table *t, uint64_t bytes)
{
	char size[UI_SIZE_LEN];

	strv_add(&t->cells, bytes ? ui_size(bytes, size) : nothing);
}

static void add_rate(struct text_table *t, double rate)
{
	char size[UI_SIZE_LEN];

	if (rate >= 1)
		strv_addf(&t->cells, "%s/s", ui_size((uint64_t)rate, size));
	else
		strv_add(&t->cells, nothing);
}

static void add_latency(struct text_table *t, const json_t *row)
{
	uint64_t us = port_rows_number(row, "connectP50Micros");

	if (!us)
		us = port_rows_number(row, "connectLastMicros");
	if (us)
		strv_addf(&t->cells, us < 10000 ? "%.1f ms" : "%.0f ms", (double)us / 1000);
	else
		strv_add(&t->cells, nothing);
}

static void add_connections(struct text_table *t, const json_t *row)
{
	uint64_t now = port_rows_number(row, "connectionsNow");
	uint64_t total = port_rows_number(row, "connectionsTotal");

	if (total)
		strv_addf(&t->cells, "%llu/%llu", (unsigned long long)now, (unsigned long long)total);
	else
		strv_add(&t->cells, nothing);
}

/* "2 h": how long it has been so. */
static const char *age_text(const char *since, char out[32])
{
	static const struct {
		long seconds;
		const char *unit;
	} units[] = { { 86400, "d" }, { 3600, "h" }, { 60, "min" }, { 1, "s" } };
	struct timespec at;
	double age;

	*out = 0;
	if (!*since || clock_rfc3339_parse(since, &at) < 0)
		return out;
	age = difftime(time(NULL), at.tv_sec);
	age = MAX(age, 0.0);
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (age < (double)units[i].seconds && units[i].seconds > 1)
			continue;
		snprintf(out, 32, "%ld %s", (long)age / units[i].seconds, units[i].unit);
		break;
	}
	return out;
}

/* Why it is not forwarded; otherwise whose rule it is and since when. */
static void add_note(struct text_table *t, const json_t *row)
{
	const char *error = port_rows_get(row, "error"), *origin = port_rows_get(row, "origin");
	scoped_buf struct buf b = { 0 };
	char age[32];

	if (*error) {
		add_text(t, error);
		return;
	}
	if (streq(origin, "live") || streq(origin, "file"))
		buf_add_str(&b, port_rows_get(row, "rule"));
	if (json_is_true(json_object_get(row, "reverse")))
		buf_addf(&b, "%sreverse", b.len ? ", " : "");
	if (*age_text(port_rows_get(row, "since"), age))
		buf_addf(&b, "%s%s", b.len ? ", " : "", age);
	strv_take(&t->cells, log_escape(buf_str(&b), CELL_MAX_BYTES));
}

void port_rows_begin(struct text_table *t, unsigned columns)
{
	size_t numbers;

	if (columns & PORT_INSTANCE)
		strv_add(&t->cells, "INSTANCE");
	strv_add_all(&t->cells, "PROTO", "GUEST", "HOST", "STATE", "LANE", NULL);
	numbers = t->cells.len;
	strv_add_all(&t->cells, "CONNS", "IN", "OUT", NULL);
	if (columns & PORT_RATES)
		strv_add_all(&t->cells, "IN/S", "OUT/S", "LATENCY", NULL);
	strv_add_all(&t->cells, "ERRORS", "NOTE", NULL);
	t->n_columns = t->cells.len;
	for (size_t c = numbers; c < t->n_columns - 1; c++) {
		t->right |= 1ul << c;
		if (columns & PORT_RATES)
			t->widths[c] = RATE_WIDTH;	/* drawn again and again: it must not jump */
	}
}

void port_rows_add(struct text_table *t, unsigned columns, const char *instance, const json_t *row,
		   const struct port_rates *rates)
{
	uint64_t errors = port_rows_number(row, "errorsTotal");

	if (columns & PORT_INSTANCE)
		add_text(t, instance);
	add_text(t, port_rows_get(row, "protocol"));
	add_text(t, port_rows_get(row, "guestAddr"));
	add_text(t, port_rows_get(row, "hostAddr"));
	add_text(t, port_rows_get(row, "state"));
	add_text(t, port_rows_get(row, "lane"));
	add_connections(t, row);
	add_bytes(t, port_rows_number(row, "bytesIn"));
	add_bytes(t, port_rows_number(row, "bytesOut"));
	if (columns & PORT_RATES) {
		add_rate(t, rates->in);
		add_rate(t, rates->out);
		add_latency(t, row);
	}
	if (errors)
		strv_addf(&t->cells, "%llu", (unsigned long long)errors);
	else
		strv_add(&t->cells, nothing);
	add_note(t, row);
}

/* --- live rules without a listener --------------------------------------- */

static bool has_row(const json_t *ports, uint64_t rule_id)
{
	const json_t *row;
	size_t i;

	json_array_foreach(ports, i, row)
		if (port_rows_number(row, "ruleId") == rule_id)
			return true;
	return false;
}

/* "127.0.0.1:80", "[::1]:80": its port lies in the rule's range. */
static bool is_about(const json_t *rule, const json_t *row)
{
	const json_t *range = json_object_get(rule, "guestPortRange");
	const char *colon = strrchr(port_rows_get(row, "guestAddr"), ':');
	const char *proto = port_rows_get(rule, "proto");
	json_int_t port = colon ? strtol(colon + 1, NULL, 10) : 0;

	if (!streq(proto, "any") && !streq(proto, port_rows_get(row, "protocol")))
		return false;
	return port && port >= json_integer_value(json_array_get(range, 0)) &&
	       port <= json_integer_value(json_array_get(range, 1));
}

/* Why no row is this rule's; caller frees. */
static char *why_idle(const json_t *rule, const json_t *ports)
{
	const json_t *row;
	size_t i;

	if (json_is_true(json_object_get(rule, "ignore")))
		return xstrdup("");
	json_array_foreach(ports, i, row) {
		const char *other = port_rows_get(row, "rule");

		if (is_about(rule, row))
			return xasprintf("%s decides about %s", *other ? other : "another rule",
					 port_rows_get(row, "guestAddr"));
	}
	return xstrdup("nothing listens on it in the guest");
}

json_t *port_rows_idle(const json_t *ports, const json_t *rules)
{
	json_t *list = json_array();
	const json_t *rule;
	size_t i;

	json_array_foreach(rules, i, rule) {
		uint64_t id = port_rows_number(rule, "id");
		bool ignores = json_is_true(json_object_get(rule, "ignore"));

		if (!streq(port_rows_get(rule, "origin"), "live") || has_row(ports, id))
			continue;
		scoped_free char *guest = port_spec_guest_of_rule(rule);
		scoped_free char *host = port_spec_host_of_rule(rule), *why = why_idle(rule, ports);
		json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:s}",
						      "protocol", port_rows_get(rule, "proto"),
						      "guestAddr", guest, "hostAddr", host, "state",
						      ignores ? "ignored" : "idle", "origin", "live",
						      "rule", port_rows_get(rule, "name"), "ruleId",
						      (json_int_t)id, "error", why));
	}
	return list;
}

/* --- one line ------------------------------------------------------------ */

char *port_rows_line(const json_t *row)
{
	const char *host = port_rows_get(row, "hostAddr"), *error = port_rows_get(row, "error");
	scoped_buf struct buf b = { 0 };

	buf_addf(&b, "%s %s%s%s: %s%s%s", port_rows_get(row, "protocol"), port_rows_get(row, "guestAddr"),
		 *host ? " on " : "", host, port_rows_get(row, "state"), *error ? ": " : "", error);
	return log_escape(buf_str(&b), 4 * CELL_MAX_BYTES);
}
