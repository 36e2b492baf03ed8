/* agent_lanes.c - the ways into the guest that are asked for by name: ssh, direct
 *
 * LIMA_SSH_PORT_FORWARDER and _LIMA_DIRECT_IP_PORT_FORWARDER, Lima's switches, stand
 * for `portForwarding.lane` where neither that nor a rule chose one.
 */
#include "hostagent/agent_impl.h"

#include <arpa/inet.h>
#include <errno.h>

#include "hostagent/forward/address.h"
#include "hostagent/forward/lane_direct.h"
#include "hostagent/forward/lane_ssh.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/store/layout.h"

/* --- who wants what ------------------------------------------------------ */

/* What Go's strconv.ParseBool takes for true, so Lima does. */
static bool is_set(const char *name)
{
	static const char *const yes[] = { "1", "t", "T", "true", "TRUE", "True" };
	const char *value = getenv(name);

	for (size_t i = 0; value && i < ARRAY_SIZE(yes); i++)
		if (streq(value, yes[i]))
			return true;
	return false;
}

static enum config_lane or_asked(enum config_lane lane)
{
	if (lane != CONFIG_LANE_AUTO)
		return lane;
	return is_set("LIMA_SSH_PORT_FORWARDER")	? CONFIG_LANE_SSH :
	       is_set("_LIMA_DIRECT_IP_PORT_FORWARDER") ? CONFIG_LANE_DIRECT :
							  CONFIG_LANE_AUTO;
}

void agent_lanes_prepare_rule(struct config_port_forward *rule)
{
	rule->lane = or_asked(rule->lane);
}

void agent_lanes_prepare(struct agent *a)
{
	struct config *c = a->config;

	c->port_forwarding.lane = or_asked(c->port_forwarding.lane);
	for (size_t i = 0; i < c->n_port_forwards; i++)
		agent_lanes_prepare_rule(&c->port_forwards[i]);
}

static void look_for_ssh(void *arg, const struct forward_rule_info *info)
{
	const struct config_port_forward *rule = info->rule;

	if (rule->lane == CONFIG_LANE_SSH || (rule->guest_socket && !rule->ignore))
		*(bool *)arg = true;
}

bool agent_lanes_want_ssh(const struct agent *a)
{
	const struct config *c = a->config;
	bool wanted = c->plain || c->port_forwarding.lane == CONFIG_LANE_SSH;

	if (a->forward)		/* also those that came while it runs */
		forward_each_rule(a->forward, look_for_ssh, &wanted);
	return wanted;
}

/* --- ssh ----------------------------------------------------------------- */

static int ssh_control(void *arg, const char *command, const char *const *more, struct strv *argv,
		       struct error *err)
{
	struct agent *a = arg;

	if (ssh_add_program(argv, err) < 0)
		return err->code;
	ssh_add_control(argv, &a->ssh, command, more);
	return 0;
}

static void on_ssh_failed(void *arg)
{
	struct agent *a = arg;

	if (a->master)
		ssh_master_ensure(a->master);	/* looks whether it is there at all */
}

void agent_lanes_set_master(struct agent *a, bool up)
{
	if (!a->ssh_lane || !a->forward)
		return;
	if (!up)
		forward_set_lane(a->forward, CONFIG_LANE_SSH, NULL);
	lane_ssh_set_master(a->ssh_lane, up);
	if (up)
		forward_set_lane(a->forward, CONFIG_LANE_SSH, a->ssh_lane);
}

/* --- direct -------------------------------------------------------------- */

/* The driver runs by now. */
static void set_guest_address(struct agent *a)
{
	const char *text = a->driver_info.guest_ip;
	struct in6_addr ip = address_v4(0, 0, 0, 0);

	if (!*text)
		return;
	if (inet_pton(AF_INET6, text, &ip) != 1 && inet_pton(AF_INET, text, ip.s6_addr + 12) != 1)
		log_warn("agent: the driver says the guest is at `%s`, no address, ignoring", text);
	else
		lane_direct_set_address(a->direct_lane, &ip);
}

/* --- life ---------------------------------------------------------------- */

void agent_lanes_start(struct agent *a)
{
	scoped_free char *prefix = layout_instance_file(a->dir, FILE_LANE_SOCKS);
	struct lane_ssh_options so = { .loop = &a->loop, .socket_prefix = prefix,
				       .control = ssh_control, .failed = on_ssh_failed, .arg = a };

	a->ssh_lane = lane_ssh_new(&so);
	a->direct_lane = lane_direct_new(&a->loop);
	set_guest_address(a);
	forward_set_lane(a->forward, CONFIG_LANE_DIRECT, a->direct_lane);
}

static void on_lane_closed(void *arg)
{
	struct agent *a = arg;

	if (--a->lanes_closing == 0)
		steps_undone(a->steps);
}

/* The forwards were closed: nobody uses them any more. */
void agent_lanes_undo(void *arg)
{
	struct agent *a = arg;

	a->lanes_closing = 2;
	lane_ssh_close(steal_ptr(&a->ssh_lane), on_lane_closed, a);
	lane_direct_close(steal_ptr(&a->direct_lane), on_lane_closed, a);
}
