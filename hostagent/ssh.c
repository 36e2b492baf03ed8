#include "hostagent/ssh.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "hostagent/ssh_key.h"
#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

enum { SSH_CONFIG_MAX_BYTES = 64 * 1024 };

static bool cpu_has_aes(void)
{
#if defined(__x86_64__)
	return __builtin_cpu_supports("aes");
#elif defined(__aarch64__)
	return getauxval(AT_HWCAP) & HWCAP_AES;
#else
	return false;
#endif
}

void ssh_target_init(struct ssh_target *t, const char *lima_home, const char *instance,
		     const char *instance_dir, const struct config *config, uint16_t port)
{
	scoped_free char *known = layout_instance_file(instance_dir, FILE_SSH_KNOWN_HOSTS);

	*t = (struct ssh_target){
		.instance = xstrdup(instance),
		.dir = xstrdup(instance_dir),
		.user = xstrdup(config->user.name),
		.host = xstrdup("127.0.0.1"),
		.port = port,
		.pinned = path_exists(known),
		.forward_agent = config->ssh.forward_agent,
		.forward_x11 = config->ssh.forward_x11,
		.forward_x11_trusted = config->ssh.forward_x11_trusted,
		.aes = cpu_has_aes(),
	};
	strv_take(&t->identities, layout_user_key(lima_home));
	if (config->ssh.load_dot_ssh_pub_keys)
		ssh_key_add_dot_ssh(&t->identities, NULL);
}

void ssh_target_done(struct ssh_target *t)
{
	free(t->instance);
	free(t->dir);
	free(t->user);
	free(t->host);
	strv_done(&t->identities);
	*t = (struct ssh_target){ 0 };
}

int ssh_add_program(struct strv *argv, struct error *err)
{
	const char *env = getenv("SSH");
	scoped_strv struct strv words = { 0 };
	const char *word;

	strv_split(&words, env ? env : "", " \t");
	if (words.len == 0)
		strv_add(&words, "ssh");
	scoped_free char *program = path_find_program(words.items[0]);
	if (!program)
		return error_set(err, -ENOENT,
				 "program `%s` not found: install it (apt install openssh-client)%s",
				 words.items[0], env ? " or correct $SSH" : "");
	strv_foreach (word, &words)
		strv_add(argv, word);
	return 0;
}

/* --- the option list ----------------------------------------------------- */

/* A path as ssh_config(5) reads it: quoted, with % doubled because these
 * options expand tokens. */
static char *quoted_path(const char *path)
{
	struct buf b = { 0 };

	buf_add_u8(&b, '"');
	for (; *path; path++) {
		if (*path == '"' || *path == '\\')
			buf_add_u8(&b, '\\');
		if (*path == '%')
			buf_add_u8(&b, '%');
		buf_add_u8(&b, (uint8_t)*path);
	}
	buf_add_u8(&b, '"');
	return buf_steal_str(&b);
}

struct option {
	const char *key;
	char *value;
};

struct options {
	struct option items[32];
	size_t n;
};

static void options_done(struct options *o)
{
	while (o->n)
		free(o->items[--o->n].value);
}

static void take(struct options *o, const char *key, char *value)
{
	if (o->n == ARRAY_SIZE(o->items)) {	/* a home with 20 keys: sshd gives up after 6 */
		free(value);
		return;
	}
	o->items[o->n++] = (struct option){ key, value };
}

static void add(struct options *o, const char *key, const char *value)
{
	take(o, key, xstrdup(value));
}

static void add_file(struct options *o, const char *key, const struct ssh_target *t,
		     enum instance_file file)
{
	scoped_free char *path = layout_instance_file(t->dir, file);

	take(o, key, quoted_path(path));
}

static void add_host_key_options(struct options *o, const struct ssh_target *t)
{
	add(o, "StrictHostKeyChecking", t->pinned ? "yes" : "accept-new");
	add_file(o, "UserKnownHostsFile", t, FILE_SSH_KNOWN_HOSTS);
	add(o, "GlobalKnownHostsFile", "/dev/null");
	take(o, "HostKeyAlias", layout_hostname(t->instance));
	add(o, "UpdateHostKeys", "no");	/* the guest has no say in what is pinned */
}

static void add_mux_options(struct options *o, const struct ssh_target *t, enum ssh_mux mux)
{
	if (mux == SSH_NO_MUX) {
		add(o, "ControlMaster", "no");
		add(o, "ControlPath", "none");
		return;
	}
	add(o, "ControlMaster", mux == SSH_MUX_MASTER ? "yes" : "auto");
	add_file(o, "ControlPath", t, FILE_SSH_SOCK);
	add(o, "ControlPersist", mux == SSH_MUX_MASTER ? "no" : "yes");
}

static void options_fill(struct options *o, const struct ssh_target *t, enum ssh_mux mux)
{
	size_t keys = MIN(t->identities.len, (size_t)8);

	for (size_t i = 0; i < keys; i++)
		take(o, "IdentityFile", quoted_path(t->identities.items[i]));
	add(o, "IdentitiesOnly", "yes");
	add_host_key_options(o, t);
	add(o, "PreferredAuthentications", "publickey");
	add(o, "BatchMode", "yes");
	add(o, "Compression", "no");
	add(o, "ConnectTimeout", "10");
	add(o, "ServerAliveInterval", "30");
	add(o, "ServerAliveCountMax", "3");
	/* reference/hostagent.md §11: the first is preferred, the rest stay */
	add(o, "Ciphers", t->aes ? "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
				 : "^chacha20-poly1305@openssh.com");
	add(o, "User", t->user);
	add_mux_options(o, t, mux);
	if (t->forward_agent)
		add(o, "ForwardAgent", "yes");
	if (t->forward_x11)
		add(o, "ForwardX11", "yes");
	if (t->forward_x11_trusted)
		add(o, "ForwardX11Trusted", "yes");
}

void ssh_add_options(struct strv *argv, const struct ssh_target *t, enum ssh_mux mux)
{
	__attribute__((cleanup(options_done))) struct options o = { .n = 0 };

	options_fill(&o, t, mux);
	strv_add_all(argv, "-F", "/dev/null", NULL);
	for (size_t i = 0; i < o.n; i++) {
		strv_add(argv, "-o");
		strv_addf(argv, "%s=%s", o.items[i].key, o.items[i].value);
	}
}

void ssh_add_destination(struct strv *argv, const struct ssh_target *t)
{
	strv_add(argv, "-p");
	strv_addf(argv, "%u", t->port);
	strv_add(argv, t->host);
}

void ssh_add_control(struct strv *argv, const struct ssh_target *t, const char *command,
		     const char *const *more)
{
	scoped_free char *sock = layout_instance_file(t->dir, FILE_SSH_SOCK);
	scoped_free char *quoted = quoted_path(sock);

	strv_add_all(argv, "-F", "/dev/null", "-T", "-o", NULL);
	strv_addf(argv, "ControlPath=%s", quoted);
	strv_add_all(argv, "-O", command, NULL);
	for (; more && *more; more++)
		strv_add(argv, *more);
	ssh_add_destination(argv, t);
}

/* --- ssh.config ---------------------------------------------------------- */

static int check_lines(const struct options *o, struct error *err)
{
	for (size_t i = 0; i < o->n; i++)
		if (strpbrk(o->items[i].value, "\r\n"))
			return error_set(err, -EINVAL, "ssh.config: line break in the value of %s",
					 o->items[i].key);
	return 0;
}

int ssh_config_text(const struct ssh_target *t, char **ret, struct error *err)
{
	__attribute__((cleanup(options_done))) struct options o = { .n = 0 };
	scoped_free char *alias = layout_hostname(t->instance);
	scoped_buf struct buf b = { 0 };

	options_fill(&o, t, SSH_MUX);
	if (check_lines(&o, err) < 0)
		return err->code;
	buf_addf(&b,
		 "# Written by limactl at each start of instance `%s`; changes are lost.\n"
		 "# Use it as: ssh -F '%s/%s' %s\n"
		 "Host %s\n",
		 t->instance, t->dir, layout_file_name(FILE_SSH_CONFIG), alias, alias);
	for (size_t i = 0; i < o.n; i++)
		buf_addf(&b, "  %s %s\n", o.items[i].key, o.items[i].value);
	buf_addf(&b, "  Hostname %s\n  Port %u\n", t->host, t->port);
	*ret = buf_steal_str(&b);
	return 0;
}

int ssh_config_write(const struct ssh_target *t, struct error *err)
{
	scoped_free char *path = layout_instance_file(t->dir, FILE_SSH_CONFIG);
	scoped_free char *config = NULL;

	if (ssh_config_text(t, &config, err) < 0)
		return err->code;
	return path_write_file(path, config, strlen(config), 0600, err);
}

uint16_t ssh_config_port(const char *instance_dir)
{
	scoped_free char *path = layout_instance_file(instance_dir, FILE_SSH_CONFIG);
	scoped_buf struct buf b = { 0 };
	scoped_strv struct strv lines = { 0 };
	const char *line;
	unsigned port = 0;

	if (path_read_file(path, SSH_CONFIG_MAX_BYTES, &b, &(struct error){ 0 }) < 0)
		return 0;
	strv_split(&lines, buf_str(&b), "\n");
	strv_foreach (line, &lines)
		if (sscanf(line, " Port %5u", &port) == 1)
			return port <= UINT16_MAX ? (uint16_t)port : 0;
	return 0;
}

/* --- the host's port ----------------------------------------------------- */

static int bind_port(uint16_t port, int *ret_fd, struct error *err)
{
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in sa = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	/* Set after an automatic bind, before one to a known port: with it a
	 * bind(0) might be given a port another one of us holds. */
	int on = 1;

	if (fd < 0)
		return error_sys(err, -errno, "ssh port: socket");
	if (port && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return error_sys(err, -errno, "ssh port: SO_REUSEADDR");
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return error_sys(err, -errno, "ssh port 127.0.0.1:%u", port);
	if (!port && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return error_sys(err, -errno, "ssh port: SO_REUSEADDR");
	*ret_fd = steal_fd(&fd);
	return 0;
}

int ssh_hold_port(uint16_t wanted, bool must, uint16_t *ret_port, int *ret_fd, struct error *err)
{
	struct sockaddr_in sa;
	socklen_t len = sizeof(sa);
	scoped_fd int fd = -1;
	int rc = bind_port(wanted, &fd, err);

	if (rc < 0 && must)
		return error_wrap(err, "ssh.localPort");
	if (rc < 0 && wanted)
		rc = bind_port(0, &fd, err);
	if (rc < 0)
		return rc;
	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return error_sys(err, -errno, "ssh port: getsockname");
	*ret_port = ntohs(sa.sin_port);
	*ret_fd = steal_fd(&fd);
	return 0;
}
