#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "hostagent/cidata_impl.h"
#include "lib/base/mem.h"

enum { ALIAS_HOPS = 8 };	/* hostResolver.hosts: a name that stands for a name … */

#define VIRTIO_PORT "io.lima-vm.guest_agent.0"

/* --- what may go into a line --------------------------------------------- */

static bool has_control(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' && *s != '\t')
			return true;
	return false;
}

static bool is_env_name(const char *s)
{
	if (!isalpha((unsigned char)*s) && *s != '_')
		return false;
	return strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") ==
	       strlen(s);
}

/* useradd(8)'s rule and nothing that sudoers(5) or passwd(5) would read as syntax. */
static bool is_user_name(const char *s)
{
	return *s && *s != '-' && *s != '.' && !isdigit((unsigned char)*s) &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") ==
		       strlen(s);
}

static int check_path(const char *key, const char *path, struct error *err)
{
	if (*path != '/' || has_control(path) || strchr(path, ':'))
		return error_set(err, -EINVAL,
				 "%s: `%s` must be an absolute path without `:` and line breaks",
				 key, path);
	return 0;
}

static int check_map(const char *what, const struct config_map *m, struct error *err)
{
	for (size_t i = 0; i < m->len; i++) {
		if (!is_env_name(m->items[i].key))
			return error_set(err, -EINVAL, "%s: `%s` is no name of a variable", what,
					 m->items[i].key);
		if (has_control(m->items[i].value))
			return error_set(err, -EINVAL,
					 "%s.%s: a line break or control character cannot be given "
					 "to the guest", what, m->items[i].key);
	}
	return 0;
}

static int check_data(const struct config_provision *p, size_t i, struct error *err)
{
	if (p->mode != PROVISION_DATA)
		return 0;
	if (*p->path != '/' || has_control(p->path) || has_control(p->owner) ||
	    has_control(p->permissions))
		return error_set(err, -EINVAL,
				 "provision[%zu]: path, owner and permissions must be one line each, "
				 "the path absolute", i);
	return 0;
}

int cidata_env_check(const struct cidata_spec *spec, struct error *err)
{
	const struct config *c = spec->config;

	if (!is_user_name(c->user.name))
		return error_set(err, -EINVAL, "user.name: `%s` cannot be a user's name in the guest",
				 c->user.name);
	if (has_control(c->timezone) || strstr(c->timezone, ".."))
		return error_set(err, -EINVAL, "timezone: `%s` is no time zone", c->timezone);
	if (check_path("user.home", c->user.home, err) < 0 ||
	    check_path("user.shell", c->user.shell, err) < 0 ||
	    check_path("guestInstallPrefix", c->guest_install_prefix, err) < 0 ||
	    check_map("env", &c->env, err) < 0 || check_map("param", &c->param, err) < 0)
		return err->code;
	for (size_t i = 0; i < c->n_provision; i++)
		if (check_data(&c->provision[i], i, err) < 0)
			return err->code;
	return 0;
}

/* GECOS: no line breaks, no field separator (passwd(5)). */
static char *clean_comment(const char *comment)
{
	char *s = xstrdup(comment);

	for (char *p = s; *p; p++)
		if (iscntrl((unsigned char)*p) || *p == ':' || *p == ',')
			*p = ' ';
	return s;
}

/* --- lima.env, param.env -------------------------------------------------- */

static void add(struct buf *b, const char *key, const char *value)
{
	buf_addf(b, "LIMA_CIDATA_%s=%s\n", key, value);
}

static void add_flag(struct buf *b, const char *key, bool value)
{
	add(b, key, value ? "1" : "");
}

static void add_data_files(const struct config *c, struct buf *b)
{
	for (size_t i = 0; i < c->n_provision; i++) {
		const struct config_provision *p = &c->provision[i];

		if (p->mode != PROVISION_DATA)
			continue;
		buf_addf(b, "LIMA_CIDATA_DATAFILE_%08zu_OVERWRITE=%s\n", i,
			 p->overwrite ? "true" : "false");
		buf_addf(b, "LIMA_CIDATA_DATAFILE_%08zu_OWNER=%s\n", i, p->owner);
		buf_addf(b, "LIMA_CIDATA_DATAFILE_%08zu_PATH=%s\n", i, p->path);
		buf_addf(b, "LIMA_CIDATA_DATAFILE_%08zu_PERMISSIONS=%s\n", i, p->permissions);
	}
}

void cidata_name_servers(const struct cidata_facts *f, struct strv *ret)
{
	const struct strv *dns = &f->spec->config->dns;
	const char *server;

	strv_foreach(server, dns)
		strv_add(ret, server);
	if (!ret->len)
		strv_add(ret, f->dns);
}

static bool skips_default_dependencies(const struct config *c)
{
	for (size_t i = 0; i < c->n_provision; i++)
		if (c->provision[i].mode == PROVISION_DEPENDENCY &&
		    c->provision[i].skip_default_dependency_resolution)
			return true;
	return false;
}

void cidata_env_lima(const struct cidata_facts *f, struct buf *b)
{
	const struct cidata_spec *s = f->spec;
	const struct config *c = s->config;
	scoped_free char *comment = clean_comment(c->user.comment);
	scoped_strv struct strv servers = { 0 };
	scoped_free char *dns = NULL;

	cidata_name_servers(f, &servers);
	dns = strv_join(&servers, " ");
	add(b, "DEBUG", "false");
	add(b, "IID", f->instance_id);
	add(b, "NAME", s->name);
	add(b, "HOSTNAME", s->hostname);
	add(b, "USER", c->user.name);
	buf_addf(b, "LIMA_CIDATA_UID=%u\n", c->user.uid);
	add(b, "COMMENT", comment);
	add(b, "HOME", c->user.home);
	add(b, "SHELL", c->user.shell);
	add(b, "GUEST_INSTALL_PREFIX", c->guest_install_prefix);
	add(b, "TIMEZONE", c->timezone);
	add(b, "MAC", s->mac);
	add(b, "SLIRP_DNS", f->dns);
	add(b, "SLIRP_GATEWAY", f->gateway);
	add(b, "SLIRP_IP_ADDRESS", f->address);
	add(b, "DNS", dns);
	add(b, "MOUNTS", "0");		/* mounts are made later, by the host */
	add(b, "DISKS", "0");
	add(b, "VMTYPE", c->vm_type);
	add(b, "VIRTIO_PORT", s->secret ? VIRTIO_PORT : "");
	add_flag(b, "UPGRADE_PACKAGES", c->upgrade_packages);
	add_flag(b, "PASSWORDLESS_SUDO", c->user.passwordless_sudo);
	add_flag(b, "SKIP_DEFAULT_DEPENDENCY_RESOLUTION", skips_default_dependencies(c));
	add_flag(b, "PLAIN", c->plain);
	add(b, "GUESTAGENT_SHA256", f->agent_sum);
	add_data_files(c, b);
}

void cidata_env_param(const struct config *config, struct buf *b)
{
	for (size_t i = 0; i < config->param.len; i++)
		buf_addf(b, "PARAM_%s=%s\n", config->param.items[i].key,
			 config->param.items[i].value);
}

/* --- etc_environment ------------------------------------------------------ */

static const char *const proxy_names[] = { "ftp_proxy", "http_proxy", "https_proxy", "no_proxy" };

static bool is_loopback(const char *host, size_t len)
{
	return (len == 9 && strncasecmp(host, "localhost", 9) == 0) ||
	       (len > 4 && strncmp(host, "127.", 4) == 0 &&
		strspn(host, "0123456789.") >= len) ||
	       (len == 5 && strncmp(host, "[::1]", 5) == 0);
}

/* A proxy on the host's loopback is reached at the gateway: [SCHEME://][USER@]HOST[:PORT][/…] */
static char *rewrite_proxy(const char *value, const char *gateway)
{
	const char *scheme = strstr(value, "://");
	const char *host = scheme ? scheme + 3 : value;
	size_t len = strcspn(host, "/");
	const char *at = memrchr(host, '@', len);

	if (at)
		host = at + 1;
	len = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/");
	if (len > strlen(host) || !is_loopback(host, len))
		return xstrdup(value);
	return xasprintf("%.*s%s%s", (int)(host - value), value, gateway, host + len);
}

struct vars {			/* what the lines will say; later wins, "" deletes */
	struct strv names, values;
};

static const char *vars_get(const struct vars *v, const char *name)
{
	for (size_t i = 0; i < v->names.len; i++)
		if (streq(v->names.items[i], name))
			return v->values.items[i];
	return NULL;
}

static void vars_set(struct vars *v, const char *name, const char *value)
{
	for (size_t i = 0; i < v->names.len; i++) {
		if (streq(v->names.items[i], name)) {
			free(v->values.items[i]);
			v->values.items[i] = xstrdup(value);
			return;
		}
	}
	strv_add(&v->names, name);
	strv_add(&v->values, value);
}

static void add_proxy(struct vars *v, const char *name, const struct cidata_facts *f)
{
	bool propagate = f->spec->config->propagate_proxy_env;
	scoped_free char *upper = xstrdup(name);
	scoped_free char *rewritten = NULL;
	const char *value;

	for (char *p = upper; *p; p++)
		*p = (char)toupper((unsigned char)*p);
	value = propagate ? getenv(name) : NULL;
	if (!value && propagate)
		value = getenv(upper);
	if (value && has_control(value))
		value = NULL;
	if (!value)
		value = vars_get(v, name);
	if (!value)
		value = vars_get(v, upper);
	if (!value)
		return;
	rewritten = streq(name, "no_proxy") ? xstrdup(value) : rewrite_proxy(value, f->gateway);
	vars_set(v, name, rewritten);
	vars_set(v, upper, rewritten);
}

void cidata_env_environment(const struct cidata_facts *f, struct buf *b)
{
	const struct config_map *env = &f->spec->config->env;
	struct vars v = { 0 };

	for (size_t i = 0; i < env->len; i++)
		vars_set(&v, env->items[i].key, env->items[i].value);
	for (size_t i = 0; i < ARRAY_SIZE(proxy_names); i++)
		add_proxy(&v, proxy_names[i], f);
	for (size_t i = 0; i < v.names.len; i++)
		if (*v.values.items[i])
			buf_addf(b, "%s=%s\n", v.names.items[i], v.values.items[i]);
	strv_done(&v.names);
	strv_done(&v.values);
}

/* --- etc_hosts ------------------------------------------------------------ */

static bool is_host_name(const char *s)
{
	return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") ==
			     strlen(s);
}

static bool is_address(const char *s)
{
	struct in6_addr addr;

	return inet_pton(AF_INET, s, &addr) == 1 || inet_pton(AF_INET6, s, &addr) == 1;
}

/* What @name stands for, through aliases; NULL when it is no address of ours to tell. */
static const char *resolve(const struct cidata_facts *f, const char *name)
{
	const struct config_map *hosts = &f->spec->config->host_resolver.hosts;

	for (int hop = 0; hop < ALIAS_HOPS; hop++) {
		const char *next = NULL;

		if (is_address(name))
			return name;
		for (size_t i = 0; i < hosts->len && !next; i++)
			if (strcasecmp(hosts->items[i].key, name) == 0)
				next = hosts->items[i].value;
		if (!next && strcasecmp(name, "host.lima.internal") == 0)
			return f->gateway;
		if (!next)
			return NULL;
		name = next;
	}
	return NULL;
}

void cidata_env_hosts(const struct cidata_facts *f, struct buf *b)
{
	const struct config_map *hosts = &f->spec->config->host_resolver.hosts;

	buf_addf(b, "127.0.1.1 %s\n", f->spec->hostname);
	buf_addf(b, "%s host.lima.internal\n", f->gateway);
	for (size_t i = 0; i < hosts->len; i++) {
		const char *address = resolve(f, hosts->items[i].value);

		if (address && is_host_name(hosts->items[i].key) &&
		    strcasecmp(hosts->items[i].key, "host.lima.internal") != 0)
			buf_addf(b, "%s %s\n", address, hosts->items[i].key);
	}
}
