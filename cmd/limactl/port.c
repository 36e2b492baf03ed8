/* port.c - `limactl port`: the forwards of running instances */
#include "cmd/limactl/port.h"

#include <errno.h>

#include "cmd/limactl/ha_client.h"
#include "cmd/limactl/instance_arg.h"
#include "cmd/limactl/port_rows.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

static int check_running(const struct instance *inst, struct error *err)
{
	if (inst->ha_pid)
		return 0;
	if (inst->driver_pid)
		return error_set(err, -ESRCH, "instance `%s` has lost its host agent; bring it back with: "
				 "limactl start %s", inst->name, inst->name);
	return error_set(err, -ESRCH, "instance `%s` is not running; start it with: limactl start %s",
			 inst->name, inst->name);
}

int port_open(const char *name, char **ret_socket, struct instance **ret, struct error *err)
{
	scoped_instance struct instance *inst = NULL;
	scoped_free char *home = NULL;

	if (instance_arg_open(name, &home, &inst, err) < 0 || check_running(inst, err) < 0)
		return err->code;
	*ret_socket = layout_instance_file(inst->dir, FILE_HA_SOCK);
	*ret = steal_ptr(&inst);
	return 0;
}

int port_get(const char *socket, const char *path, json_t **ret, struct error *err)
{
	scoped_json json_t *answer = NULL;

	if (ha_client_call(socket, "GET", path, NULL, &answer, err) < 0)
		return err->code;
	if (!json_is_array(answer))
		return error_set(err, -EPROTO, "the host agent answers %s with something else than a list",
				 path);
	*ret = steal_ptr(&answer);
	return 0;
}

int port_get_rows(const char *socket, json_t **ret, struct error *err)
{
	scoped_json json_t *ports = NULL, *rules = NULL;
	json_t *idle;

	if (port_get(socket, "/v1/ports", &ports, err) < 0 || port_get(socket, "/v1/rules", &rules, err) < 0)
		return err->code;
	idle = port_rows_idle(ports, rules);
	json_array_extend(ports, idle);
	json_decref(idle);
	*ret = steal_ptr(&ports);
	return 0;
}

static const struct verb *const port_verbs[] = {
	&verb_port_list, &verb_port_add, &verb_port_remove, NULL,
};

const struct verb verb_port = {
	.name = "port",
	.group = VERB_BASIC,
	.usage = "COMMAND",
	.summary = "show and change what is forwarded",
	.text = "A server that listens in the guest is on the host's localhost at the same port, unless\n"
		"portForwards in lima.yaml says otherwise. These commands show that and change it while\n"
		"the instance runs.",
	.examples = "  limactl port list\n  limactl port list --watch web\n  limactl port add web 8080:80",
	.verbs = port_verbs,
};
