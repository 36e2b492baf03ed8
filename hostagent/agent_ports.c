/* agent_ports.c - what ha.sock tells of forwards, and how it changes them */
#include <errno.h>
#include <unistd.h>

#include "hostagent/agent_impl.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

enum { RULES_PER_REQUEST = 64 };	/* each is resolved like a lima.yaml, on the loop */

static struct forward *forward_of(void *arg)
{
	return ((struct agent *)arg)->forward;
}

void agent_ports_init(struct agent *a)
{
	a->port_feed = port_feed_new(&a->loop, forward_of, a);
}

void agent_ports_done(struct agent *a)
{
	port_feed_close(steal_ptr(&a->port_feed));
}

/* --- looking ------------------------------------------------------------- */

json_t *agent_get_ports(void *arg)
{
	return port_feed_rows(((struct agent *)arg)->port_feed);
}

json_t *agent_get_rules(void *arg)
{
	return port_feed_rules(((struct agent *)arg)->port_feed);
}

static unsigned subscribe(void *arg, control_line_fn fn, void *to)
{
	return port_feed_subscribe(((struct agent *)arg)->port_feed, fn, to);
}

static void unsubscribe(void *arg, unsigned id)
{
	struct agent *a = arg;

	if (a->port_feed)
		port_feed_unsubscribe(a->port_feed, id);
}

/* --- changing ------------------------------------------------------------ */

static int status_of(const struct error *err)
{
	static const struct {
		int code, status;
	} statuses[] = {
		{ -EINVAL, 400 }, { -EPERM, 403 }, { -ENOENT, 404 }, { -EEXIST, 409 },
		{ -ENOTSUP, 422 }, { -ENOSPC, 507 }, { -EAGAIN, 503 }, { -EMSGSIZE, 413 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (statuses[i].code == err->code)
			return statuses[i].status;
	return 400;
}

/* One or several, as an array either way. */
static int check_body(const struct agent *a, const json_t *body, size_t *ret_n, struct error *err)
{
	size_t n = json_is_array(body) ? json_array_size(body) : 1;

	if (!a->live_rules)
		return error_set(err, -EAGAIN, "`%s` has no forwards at the moment (%s); try again when it runs",
				 a->o->name, steps_is_stopping(a->steps) ? "stopping" : "starting");
	if (!n || n > RULES_PER_REQUEST)
		return error_set(err, -EINVAL, "%zu rules in one request; 1 to %d are possible", n,
				 RULES_PER_REQUEST);
	for (size_t i = 0; i < n; i++)
		if (!json_is_object(json_is_array(body) ? json_array_get(body, i) : body))
			return error_set(err, -EINVAL, "a rule is an object such as {\"guestPort\":80,\"hostPort\":8080}");
	*ret_n = n;
	return 0;
}

static const json_t *item_at(const json_t *body, size_t i)
{
	return json_is_array(body) ? json_array_get(body, i) : body;
}

static int parse_rule(const struct agent *a, const char *text, struct config_port_forward **ret,
		      struct error *err)
{
	struct config_context ctx = { .instance = a->o->name, .instance_dir = a->dir,
				      .lima_home = a->o->lima_home };

	if (config_rule_parse(&ctx, a->config, text, strlen(text), ret, err) < 0)
		return err->code;
	agent_lanes_prepare_rule(*ret);
	return 0;
}

/* Nobody who asks for a lane by name waits for one that never comes. UDP goes through
 * gRPC whatever is asked for. */
static int check_lane(const struct agent *a, const struct config_port_forward *rule,
		      struct error *err)
{
	const char *why = agent_vsock_missing(a);

	if (!why || rule->lane != CONFIG_LANE_VSOCK || rule->ignore || rule->proto == L4_UDP ||
	    rule->guest_socket || rule->reverse || a->config->plain)
		return 0;
	return error_set(err, -ENOTSUP, "%s; `lane: auto` takes what there is", why);
}

struct chosen {
	const unsigned *ids;
	size_t n;
	json_t *list;
};

static void add_chosen(void *arg, const struct forward_rule_info *info)
{
	struct chosen *c = arg;

	for (size_t i = 0; i < c->n; i++)
		if (c->ids[i] == info->id)
			json_array_append_new(c->list, port_json_rule(info));
}

static json_t *rules_json(struct agent *a, const unsigned *ids, size_t n)
{
	struct chosen c = { ids, n, json_array() };

	forward_each_rule(a->forward, add_chosen, &c);
	return c.list;
}

struct wanted {
	char *text;	/* as it was asked for */
	struct config_port_forward *rule;
};

/* All or none. */
static int add_rules(struct agent *a, const struct wanted *w, size_t n, unsigned *ids,
		     struct error *err)
{
	struct error ignored = ERROR_NONE;

	for (size_t i = 0; i < n; i++) {
		if (forward_add_rule(a->forward, w[i].rule, &ids[i], err) == 0)
			continue;
		while (i-- > 0)
			forward_remove_rule(a->forward, ids[i], &ignored);
		return err->code;
	}
	for (size_t i = 0; i < n; i++)
		live_rules_add(a->live_rules, ids[i], w[i].text);
	if (a->master && (agent_lanes_want_ssh(a) || socket_forwards_any(a->sockets)))
		ssh_master_ensure(a->master);	/* nobody may have wanted it so far */
	return 0;
}

int agent_post_ports(void *arg, const json_t *body, json_t **ret, struct error *err)
{
	struct wanted wanted[RULES_PER_REQUEST] = { 0 };
	unsigned ids[RULES_PER_REQUEST];
	struct agent *a = arg;
	size_t n = 0;
	int rc = check_body(a, body, &n, err);

	/* the newest is asked first: added backwards, they stand as they were given */
	for (size_t i = 0; i < n && rc == 0; i++) {
		struct wanted *w = &wanted[n - 1 - i];

		w->text = json_dumps(item_at(body, i), JSON_COMPACT);
		rc = live_rules_check(w->text, err);
		if (rc == 0)
			rc = parse_rule(a, w->text, &w->rule, err);
		if (rc == 0)
			rc = check_lane(a, w->rule, err);
	}
	if (rc == 0)
		rc = add_rules(a, wanted, n, ids, err);
	for (size_t i = 0; i < n; i++) {
		config_rule_free(wanted[i].rule);
		free(wanted[i].text);
	}
	if (rc < 0)
		return status_of(err);
	*ret = rules_json(a, ids, n);
	port_feed_poke(a->port_feed);
	return 201;
}

static void find_live(void *arg, const struct forward_rule_info *info)
{
	struct chosen *c = arg;

	if (info->id == c->ids[0] && info->origin && streq(info->origin, "live"))
		c->n++;
}

static int check_id(struct agent *a, const json_t *item, unsigned *ret, struct error *err)
{
	const json_t *id = json_object_get(item, "id");
	json_int_t v = json_integer_value(id);
	struct chosen c = { ret, 0, NULL };

	if (!json_is_integer(id) || v <= 0 || v > UINT32_MAX || json_object_size(item) != 1)
		return error_set(err, -EINVAL, "a rule to remove is {\"id\": N}, as GET /v1/rules tells it");
	*ret = (unsigned)v;
	forward_each_rule(a->forward, find_live, &c);
	if (!c.n)
		return error_set(err, -ENOENT, "no rule added while the instance runs has the id %u", *ret);
	return 0;
}

int agent_delete_ports(void *arg, const json_t *body, json_t **ret, struct error *err)
{
	unsigned ids[RULES_PER_REQUEST];
	struct agent *a = arg;
	size_t n;

	if (check_body(a, body, &n, err) < 0)
		return status_of(err);
	for (size_t i = 0; i < n; i++)
		if (check_id(a, item_at(body, i), &ids[i], err) < 0)
			return status_of(err);
	*ret = rules_json(a, ids, n);
	for (size_t i = 0; i < n; i++) {
		struct error why = ERROR_NONE;

		if (forward_remove_rule(a->forward, ids[i], &why) < 0)
			log_debug("ports: %s", why.msg);	/* named twice */
		live_rules_remove(a->live_rules, ids[i]);
	}
	port_feed_poke(a->port_feed);
	return 200;
}

/* --- over the end of a host agent ------------------------------------------ */

static void restore(void *arg, unsigned id, const char *text)
{
	struct agent *a = arg;
	struct config_port_forward *rule = NULL;
	struct error err = ERROR_NONE;

	forward_set_next_rule_id(a->forward, id);
	if (parse_rule(a, text, &rule, &err) == 0 &&
	    forward_add_rule(a->forward, rule, &id, &err) == 0)
		live_rules_add(a->live_rules, id, text);
	else
		log_warn("ports: rule `%s` was added before and is dropped now: %s", text, err.msg);
	config_rule_free(rule);
}

void agent_ports_start(struct agent *a)
{
	scoped_free char *path = layout_instance_file(a->dir, FILE_LIVE_RULES);

	a->live_rules = live_rules_new(&a->loop, path);
	if (a->adopted)
		live_rules_read(a->live_rules, restore, a);
	else
		unlink(path);
}

void agent_ports_stop(struct agent *a)
{
	live_rules_close(steal_ptr(&a->live_rules));
}

const struct control_stream agent_port_stream = { subscribe, unsubscribe };
