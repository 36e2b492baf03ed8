#include "lib/store/layout.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/strv.h"

static const char *const file_names[] = {
	[FILE_LIMA_YAML] = "lima.yaml",
	[FILE_LIMA_VERSION] = "lima-version",
	[FILE_CLOUD_CONFIG] = "cloud-config.yaml",
	[FILE_CIDATA] = "cidata.iso",
	[FILE_INSTANCE_ID] = "instance-id",
	[FILE_IMAGE] = "image",
	[FILE_IMAGE_NAME] = "image-name",
	[FILE_PREPARE_DIR] = "prepare.tmp",
	[FILE_DISK] = "disk",
	[FILE_ISO] = "iso",
	[FILE_KERNEL] = "kernel",
	[FILE_KERNEL_CMDLINE] = "kernel.cmdline",
	[FILE_INITRD] = "initrd",
	[FILE_EFI_CODE] = "qemu-efi-code.fd",
	[FILE_QEMU_PID] = "qemu.pid",
	[FILE_QMP_SOCK] = "qmp.sock",
	[FILE_SERIAL_LOG] = "serial.log",
	[FILE_SERIAL_SOCK] = "serial.sock",
	[FILE_QEMU_LOG] = "qemu.log",
	[FILE_SSH_SOCK] = "ssh.sock",
	[FILE_LANE_SOCKS] = "lane",
	[FILE_SSH_CONFIG] = "ssh.config",
	[FILE_SSH_HOST_KEY] = "ssh_host_ed25519_key",
	[FILE_SSH_KNOWN_HOSTS] = "ssh_known_hosts",
	[FILE_GA_SOCK] = "ga.sock",
	[FILE_GA_FWD_SOCK] = "ga-ssh.sock",
	[FILE_VSOCK_SOCK] = "vsock.sock",
	[FILE_GA_SECRET] = "ga.secret",
	[FILE_HA_PID] = "ha.pid",
	[FILE_HA_SOCK] = "ha.sock",
	[FILE_HA_STDOUT] = "ha.stdout.log",
	[FILE_HA_STDERR] = "ha.stderr.log",
	[FILE_LOCK] = "lock",
	[FILE_PROTECTED] = "protected",
	[FILE_HOST_PORTS] = "host-ports",
	[FILE_LIVE_RULES] = "live-rules",
	[FILE_LOOPBACK] = "loopback",
	[FILE_SOCK_DIR] = "sock",
};
static_assert(ARRAY_SIZE(file_names) == FILE_COUNT, "a name for every file");

const char *layout_file_name(enum instance_file f)
{
	assert(f < FILE_COUNT && file_names[f]);
	return file_names[f];
}

/* realpath() for a path whose last components may not exist yet: the part that
 * does is resolved, the rest is appended as it is. */
static char *resolve_existing(const char *path)
{
	scoped_free char *head = xstrdup(path);
	scoped_free char *real = NULL;
	const char *tail;

	for (size_t len = strlen(head);;) {
		real = realpath(head, NULL);
		if (real || len <= 1)
			break;
		while (len > 1 && path[len - 1] == '/')
			len--;
		while (len > 1 && path[len - 1] != '/')
			len--;
		head[len] = 0;
	}
	tail = path + strlen(head);
	if (!real)
		return xstrdup(path);
	while (*tail == '/')
		tail++;
	if (!*tail)
		return steal_ptr(&real);
	return xasprintf("%s%s%s", streq(real, "/") ? "" : real, "/", tail);
}

static char *make_absolute(const char *path)
{
	char cwd[PATH_MAX];

	if (path[0] == '/' || !getcwd(cwd, sizeof(cwd)))
		return xstrdup(path);
	return xasprintf("%s/%s", cwd, path);
}

/* One line here, rather than one for each file below it that cannot be read. */
static int check_home(const char *path, struct error *err)
{
	struct stat st;

	if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
		errno = ENOTDIR;
	else if (faccessat(AT_FDCWD, path, R_OK | X_OK, AT_EACCESS) == 0 || errno == ENOENT)
		return 0;	/* `create` makes it */
	error_sys(err, -errno, "the instances are kept in %s", path);
	return error_append(err, "; set LIMA_HOME to a directory of yours");
}

int layout_lima_home(char **ret, struct error *err)
{
	const char *env = getenv("LIMA_HOME"), *home = getenv("HOME");
	scoped_free char *path = NULL;

	if (env && *env)
		path = make_absolute(env);
	else if (home && *home == '/')
		path = xasprintf("%s/.lima", home);
	else
		return error_set(err, -ENOENT,
				 "neither LIMA_HOME nor HOME is set: no place to keep instances");
	if (check_home(path, err) < 0)
		return err->code;
	*ret = resolve_existing(path);
	return 0;
}

char *layout_instance_dir(const char *lima_home, const char *name)
{
	return xasprintf("%s/%s", lima_home, name);
}

char *layout_instance_file(const char *instance_dir, enum instance_file f)
{
	return xasprintf("%s/%s", instance_dir, layout_file_name(f));
}

char *layout_config_dir(const char *lima_home)
{
	return xasprintf("%s/_config", lima_home);
}

char *layout_ssh_config(const char *lima_home)
{
	return xasprintf("%s/_config/ssh.config", lima_home);
}

char *layout_user_key(const char *lima_home)
{
	return xasprintf("%s/_config/user", lima_home);
}

char *layout_create_lock(const char *lima_home)
{
	return xasprintf("%s/_config/create.lock", lima_home);
}

char *layout_cache_dir(void)
{
	const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (xdg && *xdg == '/') /* XDG base directory specification: relative ones are ignored */
		return xasprintf("%s/lima", xdg);
	if (!home || *home != '/') {
		const struct passwd *pw = getpwuid(geteuid());

		home = pw && pw->pw_dir ? pw->pw_dir : "/";
	}
	return xasprintf("%s/.cache/lima", streq(home, "/") ? "" : home);
}

static bool is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Directory of the running program; NULL when /proc does not tell. */
static char *program_dir(void)
{
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	char *slash;

	if (n <= 0)
		return NULL;
	exe[n] = 0;
	slash = strrchr(exe, '/'); /* " (deleted)" of an upgraded program goes with the name */
	if (!slash || slash == exe)
		return NULL;
	*slash = 0;
	return xstrdup(exe);
}

static char *dir_up(const char *dir)
{
	const char *slash = strrchr(dir, '/');

	return slash && slash != dir ? xstrndup(dir, (size_t)(slash - dir)) : NULL;
}

/* BUILD when the program runs from BUILD/a/b/program, as tests do, and BUILD is
 * CMake's: its share/lima is laid out as an installed one. */
static char *build_tree_dir(void)
{
	char *dir = program_dir();

	for (int levels = 0; dir && levels < 4; levels++) {
		scoped_free char *cache = xasprintf("%s/CMakeCache.txt", dir);
		char *up;

		if (path_exists(cache))
			return dir;
		up = dir_up(dir);
		free(dir);
		dir = up;
	}
	free(dir);
	return NULL;
}

char *layout_share_dir(struct error *err)
{
	const char *env = getenv("LIMA_SHARE");
	scoped_free char *bin = program_dir();
	scoped_free char *prefix = bin ? dir_up(bin) : NULL;
	scoped_free char *share = NULL, *build = NULL;

	if (env && *env) {
		if (is_dir(env))
			return make_absolute(env);
		error_set(err, -ENOENT, "LIMA_SHARE: `%s` is not a directory", env);
		return NULL;
	}
	if (prefix) {
		share = xasprintf("%s/share/lima", prefix);
		if (is_dir(share))
			return steal_ptr(&share);
	}
	build = build_tree_dir();
	if (build)
		return xasprintf("%s/share/lima", build);
	error_set(err, -ENOENT,
		  "share/lima not found beside `%s`: install limactl with its share directory, or "
		  "set LIMA_SHARE",
		  bin ? bin : "limactl");
	return NULL;
}

char *layout_guest_agent(const char *arch, struct error *err)
{
	scoped_free char *share = layout_share_dir(err);
	scoped_free char *path = NULL;

	if (!share)
		return NULL;
	path = xasprintf("%s/lima-guestagent.Linux-%s", share, arch);
	if (access(path, R_OK) == 0)
		return steal_ptr(&path);
	error_sys(err, -errno, "no guest agent for %s: %s", arch, path);
	return NULL;
}

int layout_template_dirs(const char *lima_home, struct strv *ret, struct error *err)
{
	const char *env = getenv("LIMA_TEMPLATES_PATH");
	scoped_free char *share = NULL;

	if (env && *env) {
		strv_split(ret, env, ":");
		return 0;
	}
	share = layout_share_dir(err);
	if (!share)
		return err->code;
	strv_addf(ret, "%s/_templates", lima_home);
	strv_addf(ret, "%s/templates", share);
	return 0;
}

static bool is_alnum(char c) /* not isalnum(): no locale here */
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n >= m && streq(s + n - m, suffix);
}

int layout_check_name(const char *name, struct error *err)
{
	enum { NAME_MAX_BYTES = 76 };
	size_t len = strlen(name);
	bool after_alnum = false;

	if (len == 0)
		return error_set(err, -EINVAL, "instance name is empty");
	if (len > NAME_MAX_BYTES)
		return error_set(err, -EINVAL,
				 "instance name `%.20s…` has %zu characters, %d are allowed", name,
				 len, NAME_MAX_BYTES);
	for (const char *p = name; *p; p++) {
		bool sep = *p == '.' || *p == '_' || *p == '-';

		if (!is_alnum(*p) && !(sep && after_alnum && is_alnum(p[1])))
			return error_set(err, -EINVAL,
					 "instance name `%s`: only letters and digits are allowed, "
					 "with single `.`, `_` or `-` between them",
					 name);
		after_alnum = is_alnum(*p);
	}
	if (has_suffix(name, ".yaml") || has_suffix(name, ".yml"))
		return error_set(
			err, -EINVAL,
			"instance name `%s` looks like a file: it must not end in .yml or .yaml",
			name);
	return 0;
}

int layout_check_socket_paths(const char *instance_dir, struct error *err)
{
	/* OpenSSH makes its control socket as PATH.XXXXXXXXXXXXXXXX and renames it
	 * (OpenSSH mux.c); ga-ssh.sock is made by ssh too and is the longest. */
	enum { RANDOM_TAIL = 1 + 16 };
	size_t longest =
		strlen(instance_dir) + 1 + strlen(file_names[FILE_GA_FWD_SOCK]) + RANDOM_TAIL;
	size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

	if (longest <= max)
		return 0;
	return error_set(err, -ENAMETOOLONG,
			 "instance directory `%s` is %zu bytes too long for unix sockets below it: "
			 "choose a shorter name or LIMA_HOME",
			 instance_dir, longest - max);
}

char *layout_hostname(const char *name)
{
	char *host = xasprintf("lima-%s", name);

	for (char *p = host; *p; p++)
		if (*p == '.' || *p == '_')
			*p = '-';
	return host;
}
