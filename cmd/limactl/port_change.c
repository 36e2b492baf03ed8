/* port_change.c - add and remove rules while an instance runs */
#include <errno.h>
#include <poll.h>
#include <stdio.h>

#include "cmd/limactl/ha_client.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/lima_yaml.h"
#include "cmd/limactl/port.h"
#include "cmd/limactl/port_rows.h"
#include "cmd/limactl/port_spec.h"
#include "lib/base/clock.h"
#include "lib/base/interrupt.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/config/edit.h"
#include "lib/store/layout.h"

enum { SETTLE_MS = 500 };	/* finding out who has a port takes some ms; it may be nobody knows */

/* --- add ----------------------------------------------------------------- */

static const struct flag add_flags[] = {
	{ "static", 0, FLAG_BOOL, NULL, "open the host's port at once, whether or not something listens", false },
	{ "reverse", 0, FLAG_BOOL, NULL, "the other way: the guest reaches what the host has", false },
	{ "ignore", 0, FLAG_BOOL, NULL, "keep this port of the guest closed; SPEC is [IP:]PORT[/PROTO]", false },
	{ "lane", 0, FLAG_STRING, "LANE", "how: auto, vsock, grpc, ssh or direct", false },
	{ "save", 0, FLAG_BOOL, NULL, "also write it into lima.yaml, for the next start", false },
	{ "quiet", 'q', FLAG_BOOL, NULL, "print the host addresses only", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static int rule_of(const struct args *a, const char *text, json_t **ret, struct error *err)
{
	scoped_port_spec struct port_spec s = { 0 };
	const char *lane = args_str(a, "lane");
	json_t *rule = NULL;

	if (port_spec_parse(text, &s, err) < 0)
		return err->code;
	if (!args_bool(a, "ignore", false))
		rule = port_spec_rule(&s);
	else if (port_spec_ignore_rule(&s, &rule, err) < 0)
		return err->code;
	if (args_bool(a, "static", false))
		json_object_set_new(rule, "static", json_true());
	if (args_bool(a, "reverse", false))
		json_object_set_new(rule, "reverse", json_true());
	if (lane)
		json_object_set_new(rule, "lane", json_string(lane));
	*ret = rule;
	return 0;
}

static int rules_of(const struct args *a, json_t *ret, struct error *err)
{
	for (size_t i = 1; i < a->positional.len; i++) {
		json_t *rule = NULL;

		if (rule_of(a, a->positional.items[i], &rule, err) < 0)
			return err->code;
		json_array_append_new(ret, rule);
	}
	return 0;
}

static bool is_one_of(const json_t *row, const json_t *rules)
{
	const json_t *rule;
	size_t i;

	json_array_foreach(rules, i, rule)
		if (port_rows_number(rule, "id") == port_rows_number(row, "ruleId"))
			return true;
	return false;
}

/* Some row of ours waits, and not yet known is for whom: "… (nginx, pid 812)". */
static bool is_unsettled(const json_t *rows, const json_t *rules)
{
	const json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
		if (is_one_of(row, rules) && streq(port_rows_get(row, "state"), "waiting") &&
		    !strchr(port_rows_get(row, "error"), '('))
			return true;
	return false;
}

static int get_settled(const char *socket, const json_t *rules, json_t **ret, struct error *err)
{
	uint64_t deadline = clock_mono_ms() + SETTLE_MS;

	for (;;) {
		if (port_get_rows(socket, ret, err) < 0)
			return err->code;
		if (!is_unsettled(*ret, rules) || clock_mono_ms() >= deadline || interrupt_pending())
			return 0;
		json_decref(*ret);
		poll(NULL, 0, 20);
	}
}

/* What came of @rules. */
static int show_rules(const char *socket, const json_t *rules, bool quiet, struct error *err)
{
	scoped_json json_t *rows = NULL;
	const json_t *row;
	size_t i;

	if (get_settled(socket, rules, &rows, err) < 0)
		return err->code;
	json_array_foreach(rows, i, row) {
		if (!is_one_of(row, rules))
			continue;
		if (quiet && streq(port_rows_get(row, "state"), "forwarding")) {
			puts(port_rows_get(row, "hostAddr"));
			continue;
		}
		scoped_free char *line = port_rows_line(row);
		log_info("%s", line);
	}
	return 0;
}

/* {guestPort: 80, hostPort: 8080}, as a person writes it in lima.yaml */
static char *yaml_of(const json_t *rule)
{
	struct buf b = { 0 };
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)rule, key, v) {
		scoped_free char *plain = json_is_string(v) ? edit_quote(json_string_value(v)) :
					  json_dumps(v, JSON_ENCODE_ANY);

		buf_addf(&b, "%s%s: %s", b.len ? ", " : "{", key, plain);
	}
	buf_add_str(&b, "}");
	return buf_steal_str(&b);
}

static int save_rules(const struct instance *inst, const json_t *rules, struct error *err)
{
	scoped_buf struct buf yaml = { 0 };
	scoped_fd int lock = -1;

	if (instance_arg_lock(inst->lima_home, inst->name, "port add", false, &lock, err) < 0 ||
	    lima_yaml_read(inst, &yaml, err) < 0)
		return err->code;
	for (size_t i = json_array_size(rules); i-- > 0;) {	/* the first one stands first */
		scoped_free char *item = yaml_of(json_array_get(rules, i));

		if (edit_add(&yaml, "portForwards", EDIT_FIRST, item, err) < 0)
			return err->code;
	}
	return lima_yaml_replace(inst, &yaml, err);
}

static int add(const struct args *a, struct error *err)
{
	scoped_json json_t *rules = json_array(), *added = NULL;
	scoped_instance struct instance *inst = NULL;
	scoped_free char *socket = NULL;

	if (rules_of(a, rules, err) < 0 || port_open(a->positional.items[0], &socket, &inst, err) < 0)
		return err->code;
	if (ha_client_call(socket, "POST", "/v1/ports", rules, &added, err) < 0)
		return error_wrap(err, "port add %s", inst->name);
	if (show_rules(socket, added, args_bool(a, "quiet", false), err) < 0)
		return err->code;
	if (args_bool(a, "save", false) && save_rules(inst, rules, err) < 0)
		return error_wrap(err, "it is forwarded until `%s` stops, but was not saved", inst->name);
	return 0;
}

static int run_add(const struct args *a)
{
	struct error err = ERROR_NONE;

	interrupt_install();
	return add(a, &err) < 0 ? verb_fail(&err) : 0;
}

const struct verb verb_port_add = {
	.name = "add",
	.parent = &verb_port,
	.group = VERB_BASIC,
	.usage = "INSTANCE SPEC…",
	.summary = "forward more while the instance runs",
	.text = "SPEC is HOST:GUEST, with a range of ports or one, and /tcp or /udp behind it if it is\n"
		"about one of them only:\n"
		"\n"
		"`8080:80` from 127.0.0.1; `0.0.0.0:8080:80` or `[::1]:8080:80` from other addresses;\n"
		"`3000` the same port on both sides; `8000-8010:9000-9010/udp` a range; `auto:80` any free\n"
		"port; `8080:10.0.0.7:80` or `8080:*:80` what listens on another or on any address of the\n"
		"guest; `/run/web.sock:80` and `/tmp/d.sock:/run/docker.sock` sockets.\n"
		"\n"
		"The rule stands before those of lima.yaml and lasts until the instance stops or it is\n"
		"removed; with `--save` it is in lima.yaml, too. All SPECs are taken, or none.",
	.examples = "  limactl port add web 8080:80\n  limactl port add web 127.0.0.1:5300:53/udp 9000-9010\n"
		    "  limactl port add web --ignore 5432\n  limactl port add web --static /tmp/d.sock:/run/docker.sock",
	.flags = (const struct flag *const[]){ add_flags, NULL },
	.min_args = 2,
	.max_args = -1,
	.arg = ARG_INSTANCE_FIRST,
	.run = run_add,
};

/* --- remove -------------------------------------------------------------- */

static const struct flag remove_flags[] = {
	{ "all", 'a', FLAG_BOOL, NULL, "every rule that was added while it runs", false },
	{ NULL, 0, FLAG_BOOL, NULL, NULL, false },
};

static bool is_live(const json_t *rule)
{
	return streq(port_rows_get(rule, "origin"), "live");
}

static void add_id(json_t *ids, const json_t *rule)
{
	json_array_append_new(ids, json_pack("{s:I}", "id", (json_int_t)port_rows_number(rule, "id")));
}

/* Somebody looks for a rule there is not: what there is. */
static int tell_missing(const char *text, const struct port_spec *s, const json_t *rules,
			const char *instance, struct error *err)
{
	scoped_strv struct strv live = { 0 };
	const json_t *rule;
	size_t i;

	json_array_foreach(rules, i, rule) {
		if (!is_live(rule) && port_spec_is_rule(s, rule)) {
			scoped_free char *guest = port_spec_guest_of_rule(rule);

			return error_set(err, -EPERM, "`%s` is %s of lima.yaml and stays; keep it closed "
					 "for now with: limactl port add --ignore %s %s", text,
					 port_rows_get(rule, "name"), instance, guest);
		}
		if (is_live(rule))
			strv_take(&live, port_spec_of_rule(rule));
	}
	if (!live.len)
		return error_set(err, -ENOENT, "no rule was added while `%s` runs; to close a port: "
				 "limactl port add --ignore %s GUESTPORT", instance, instance);
	scoped_free char *list = strv_join(&live, ", ");
	return error_set(err, -ENOENT, "no live rule of `%s` is `%s`; there are: %s", instance, text, list);
}

static int find_rules(const struct args *a, const json_t *rules, json_t *ids, struct error *err)
{
	const json_t *rule;
	size_t r;

	json_array_foreach(rules, r, rule)
		if (args_bool(a, "all", false) && is_live(rule))
			add_id(ids, rule);
	for (size_t i = 1; i < a->positional.len; i++) {
		scoped_port_spec struct port_spec s = { 0 };
		size_t before = json_array_size(ids);

		if (port_spec_parse(a->positional.items[i], &s, err) < 0)
			return err->code;
		json_array_foreach(rules, r, rule)
			if (is_live(rule) && port_spec_is_rule(&s, rule))
				add_id(ids, rule);
		if (json_array_size(ids) == before)
			return tell_missing(a->positional.items[i], &s, rules, a->positional.items[0], err);
	}
	return 0;
}

static int remove_rules(const struct args *a, struct error *err)
{
	scoped_json json_t *rules = NULL, *ids = json_array(), *removed = NULL;
	scoped_instance struct instance *inst = NULL;
	scoped_free char *socket = NULL;
	const json_t *rule;
	size_t i;

	if (a->positional.len < 2 && !args_bool(a, "all", false))
		return error_set(err, -EINVAL, "port remove: say which: limactl port remove %s SPEC…, or --all",
				 a->positional.items[0]);
	if (port_open(a->positional.items[0], &socket, &inst, err) < 0 ||
	    port_get(socket, "/v1/rules", &rules, err) < 0 || find_rules(a, rules, ids, err) < 0)
		return err->code;
	if (!json_array_size(ids)) {
		log_info("no rule was added while `%s` runs", inst->name);
		return 0;
	}
	if (ha_client_call(socket, "DELETE", "/v1/ports", ids, &removed, err) < 0)
		return error_wrap(err, "port remove %s", inst->name);
	json_array_foreach(removed, i, rule) {
		scoped_free char *spec = port_spec_of_rule(rule);

		log_info("removed %s", spec);
	}
	return 0;
}

static int run_remove(const struct args *a)
{
	struct error err = ERROR_NONE;

	interrupt_install();
	return remove_rules(a, &err) < 0 ? verb_fail(&err) : 0;
}

const struct verb verb_port_remove = {
	.name = "remove",
	.parent = &verb_port,
	.aliases = "rm delete",
	.group = VERB_BASIC,
	.usage = "INSTANCE SPEC…",
	.summary = "take back what `limactl port add` did",
	.text = "SPEC is what was added, or its host's side alone (for what was ignored, the guest's\n"
		"port): `limactl port list` shows both. Connections that are open go on. Rules of lima.yaml\n"
		"stay; what they forward is closed by `limactl port add --ignore`.",
	.examples = "  limactl port remove web 8080:80\n  limactl port remove web 8080 9000-9010\n"
		    "  limactl port remove web --all",
	.flags = (const struct flag *const[]){ remove_flags, NULL },
	.min_args = 1,
	.max_args = -1,
	.arg = ARG_INSTANCE_FIRST,
	.run = run_remove,
};
