#include "cmd/limactl/instance_view.h"

#include <errno.h>

#include "lib/base/mem.h"
#include "lib/base/strv.h"
#include "lib/config/emit.h"
#include "lib/config/expr.h"
#include "lib/store/layout.h"

static json_t *string_list(const struct strv *v)
{
	json_t *list = json_array();
	const char *s;

	strv_foreach(s, v)
		json_array_append_new(list, json_string(s));
	return list;
}

static void add_config(json_t *o, const struct config *c)
{
	json_t *config = json_loadb((const char *)c->json.data, c->json.len, 0, NULL);
	json_t *param = json_object_get(config, "param");

	json_object_set_new(o, "vmType", json_string(c->vm_type));
	json_object_set_new(o, "arch", json_string(arch_name(c->arch)));
	json_object_set_new(o, "cpus", json_integer(c->cpus));
	json_object_set_new(o, "memory", json_integer((json_int_t)c->memory_bytes));
	json_object_set_new(o, "disk", json_integer((json_int_t)c->disk_bytes));
	if (*c->message)
		json_object_set_new(o, "message", json_string(c->message));
	if (json_object_size(param))
		json_object_set(o, "param", param);
	if (config)
		json_object_set_new(o, "config", config);
}

json_t *instance_view_json(const struct instance *inst)
{
	scoped_free char *ssh_config = layout_instance_file(inst->dir, FILE_SSH_CONFIG);
	scoped_free char *key = layout_user_key(inst->lima_home);
	json_t *o = json_object();

	json_object_set_new(o, "name", json_string(inst->name));
	json_object_set_new(o, "hostname", json_string(inst->hostname));
	json_object_set_new(o, "status", json_string(instance_status_name(inst->status)));
	json_object_set_new(o, "dir", json_string(inst->dir));
	if (inst->config)
		add_config(o, inst->config);
	json_object_set_new(o, "sshLocalPort", json_integer(inst->ssh_local_port));
	json_object_set_new(o, "sshConfigFile", json_string(ssh_config));
	if (inst->ha_pid)
		json_object_set_new(o, "hostAgentPID", json_integer(inst->ha_pid));
	if (inst->driver_pid)
		json_object_set_new(o, "driverPID", json_integer(inst->driver_pid));
	if (inst->errors.len)
		json_object_set_new(o, "errors", string_list(&inst->errors));
	json_object_set_new(o, "sshAddress", json_string("127.0.0.1"));
	json_object_set_new(o, "protected", json_boolean(inst->is_protected));
	json_object_set_new(o, "limaVersion", json_string(inst->lima_version));
	json_object_set_new(o, "HostOS", json_string("linux"));
	json_object_set_new(o, "HostArch", json_string(arch_name(arch_host())));
	json_object_set_new(o, "LimaHome", json_string(inst->lima_home));
	json_object_set_new(o, "IdentityFile", json_string(key));
	return o;
}

int instance_view_yaml(const json_t *view, struct buf *ret, struct error *err)
{
	scoped_free char *json = json_dumps(view, JSON_COMPACT);

	return emit_json(json, strlen(json), ret, err);
}

/* --- templates ------------------------------------------------------------------- */

static const struct {
	const char *field, *key;
} fields[] = {
	{ "Arch", "arch" },
	{ "CPUs", "cpus" },
	{ "Dir", "dir" },
	{ "Disk", "disk" },
	{ "DriverPID", "driverPID" },
	{ "HostAgentPID", "hostAgentPID" },
	{ "HostArch", "HostArch" },
	{ "HostOS", "HostOS" },
	{ "Hostname", "hostname" },
	{ "IdentityFile", "IdentityFile" },
	{ "LimaHome", "LimaHome" },
	{ "LimaVersion", "limaVersion" },
	{ "Memory", "memory" },
	{ "Message", "message" },
	{ "Name", "name" },
	{ "Protected", "protected" },
	{ "SSHAddress", "sshAddress" },
	{ "SSHConfigFile", "sshConfigFile" },
	{ "SSHLocalPort", "sshLocalPort" },
	{ "Status", "status" },
	{ "VMType", "vmType" },
};

void instance_view_fields(FILE *out)
{
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		fprintf(out, "%s\n", fields[i].field);
	fputs("Param.NAME\n", out);
}

/* As the templates' language has it: what is false or not there is "". */
static char *value_text(const json_t *v)
{
	if (json_is_integer(v))
		return xasprintf("%lld", (long long)json_integer_value(v));
	if (json_is_true(v))
		return xstrdup("true");
	return xstrdup(json_is_string(v) ? json_string_value(v) : "");
}

static void add_var(struct expr_vars *vars, struct strv *texts, const char *name, const json_t *v)
{
	strv_add(texts, name);
	strv_take(texts, value_text(v));
	expr_vars_add(vars, texts->items[texts->len - 2], texts->items[texts->len - 1]);
}

int instance_view_template(const json_t *view, const char *template, struct buf *ret,
			   struct error *err)
{
	scoped_strv struct strv texts = { 0 };	/* what the variables point to */
	struct expr_vars vars = { 0 };
	scoped_free char *text = NULL;
	const char *name;
	json_t *value;
	int rc;

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		add_var(&vars, &texts, fields[i].field, json_object_get(view, fields[i].key));
	json_object_foreach(json_object_get(view, "param"), name, value) {
		scoped_free char *full = xasprintf("Param.%s", name);

		add_var(&vars, &texts, full, value);
	}
	rc = expr_expand(template, &vars, &text, NULL, err);
	expr_vars_done(&vars);
	if (rc < 0)
		return error_append(err, "; fields are listed by: limactl list --list-fields");
	buf_add_str(ret, text ? text : template);
	buf_add_str(ret, "\n");
	return 0;
}
