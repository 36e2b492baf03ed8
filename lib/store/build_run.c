#include <errno.h>
#include <pwd.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/build_impl.h"

extern char **environ;

enum { TMP_BYTES_NEEDED = 1200 << 20 };	/* tree and downloaded packages, with room for `include` */

/* --- may we? --------------------------------------------------------------- */

static bool is_root(void)
{
	return geteuid() == 0;
}

static const struct tool {
	const char *program, *package;
	bool user_only;		/* root does without */
} tools[] = {
	{ "mmdebstrap", "mmdebstrap", false },
	{ "mke2fs", "e2fsprogs", false },
	{ "qemu-img", "qemu-utils", false },
	{ "tar", "tar", false },
	{ "unshare", "util-linux", true },
	{ "newuidmap", "uidmap", true },
};

/* of the package debian-archive-keyring, also on Ubuntu */
static const char debian_keys[] = "/usr/share/keyrings/debian-archive-keyring.gpg";

static int check_tools(struct error *err)
{
	scoped_strv struct strv programs = { 0 }, packages = { 0 };
	scoped_free char *program_list = NULL, *package_list = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(tools); i++) {
		scoped_free char *path = NULL;

		if (tools[i].user_only && is_root())
			continue;
		path = path_find_program(tools[i].program);
		if (path)
			continue;
		strv_add(&programs, tools[i].program);
		strv_add(&packages, tools[i].package);
	}
	/* On a Debian the key came with the system. */
	if (!path_exists(debian_keys)) {
		strv_add(&programs, "Debian's archive keys");
		strv_add(&packages, "debian-archive-keyring");
	}
	if (!programs.len)
		return 0;
	program_list = strv_join(&programs, ", ");
	package_list = strv_join(&packages, " ");
	return error_set(err, -ENOENT, "%s missing; install with: sudo apt-get install %s",
			 program_list, package_list);
}

/* A line "NAME-OR-UID:FIRST:COUNT" of subuid(5) that gives this user 65536 ids. */
static bool has_sub_ids(const char *path, const char *user)
{
	scoped_buf struct buf b = { 0 };
	scoped_strv struct strv lines = { 0 };
	scoped_free char *uid = xasprintf("%u", (unsigned)getuid());
	const char *line;

	if (path_read_file(path, 1 << 20, &b, &(struct error){ 0 }) < 0)
		return false;
	strv_split(&lines, buf_str(&b), "\n");
	strv_foreach(line, &lines) {
		size_t len = strcspn(line, ":");
		unsigned long count;

		if ((strncmp(line, user, len) == 0 && !user[len]) ||
		    (strncmp(line, uid, len) == 0 && !uid[len]))
			if (sscanf(line + len, ":%*u:%lu", &count) == 1 && count >= 65536)
				return true;
	}
	return false;
}

static int check_namespaces(struct error *err)
{
	const char *argv[] = { "unshare", "--map-auto", "--map-root-user", "true", NULL };
	struct child_spec spec = { .argv = argv };
	scoped_child_result struct child_result r = { 0 };
	const struct passwd *pw = getpwuid(getuid());
	const char *user = pw ? pw->pw_name : "";

	if (!has_sub_ids("/etc/subuid", user) || !has_sub_ids("/etc/subgid", user))
		return error_set(err, -EPERM,
				 "user `%s` has no subordinate ids to build with; give some: "
				 "sudo usermod --add-subuids 200000-265535 --add-subgids "
				 "200000-265535 %s", user, user);
	if (child_run_ok(&spec, &r, err) < 0)
		return err->code == -ECANCELED ? err->code :
		       error_wrap(err, "this user may not make user namespaces (see sysctl "
				  "kernel.unprivileged_userns_clone, "
				  "kernel.apparmor_restrict_unprivileged_userns, or build as root)");
	return 0;
}

int build_run_check(struct error *err)
{
	if (check_tools(err) < 0)
		return err->code;
	return is_root() ? 0 : check_namespaces(err);
}

/* --- where --------------------------------------------------------------------- */

static bool has_room(const char *dir)
{
	struct statvfs v;

	return statvfs(dir, &v) == 0 && !(v.f_flag & (ST_NOEXEC | ST_RDONLY)) &&
	       (uint64_t)v.f_bavail * v.f_frsize >= TMP_BYTES_NEEDED && access(dir, W_OK) == 0;
}

int build_run_make_tmp(const char *key, char **ret, struct error *err)
{
	const char *dirs[] = { getenv("TMPDIR"), "/tmp", "/var/tmp" };

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		scoped_free char *tmp = NULL;

		if (!dirs[i] || !has_room(dirs[i]))
			continue;
		tmp = xasprintf("%s/lima-build-%.8s.XXXXXX", dirs[i], key);
		if (!mkdtemp(tmp) || chmod(tmp, 0755) < 0)
			continue;
		*ret = steal_ptr(&tmp);
		return 0;
	}
	return error_set(err, -ENOSPC,
			 "neither $TMPDIR, /tmp nor /var/tmp has %d MiB free and lets programs run; "
			 "free some, or point TMPDIR elsewhere", TMP_BYTES_NEEDED >> 20);
}

/* --- mmdebstrap ------------------------------------------------------------------ */

/* What mmdebstrap says at the beginning of its stages, and how far that is, in
 * percent of the whole build; the stages between move by counting packages. */
static const struct stage {
	const char *starts_with, *shown;
	unsigned percent, weight;
} stages[] = {
	{ "I: running apt-get update", "fetching package lists", 2, 0 },
	{ "I: downloading packages", "downloading essential packages", 8, 6 },
	{ "I: extracting archives", "unpacking essential packages", 14, 0 },
	{ "I: installing essential", "installing essential packages", 18, 8 },
	{ "I: installing remaining", "installing packages", 26, 48 },
	{ "I: cleaning package", "cleaning up", 74, 0 },
	{ "I: creating tarball", "packing the tree", 76, 0 },
};

struct watch {
	const struct progress *progress;
	const struct build_spec *spec;
	const struct stage *stage;
	unsigned total, seen;		/* package events of this stage */
	char *last_error;		/* apt's own "E: …" says more than mmdebstrap's last */
};

static void watch_show(const struct watch *w)
{
	scoped_free char *what = xasprintf("building %s: %s", w->spec->suite, w->stage->shown);
	unsigned part = w->total ? w->stage->weight * MIN(w->seen, w->total) / w->total : 0;

	progress_update(w->progress, what, w->stage->percent + part, 100);
}

static void on_line(void *arg, const char *line)
{
	struct watch *w = arg;
	unsigned n;

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++) {
		if (strncmp(line, stages[i].starts_with, strlen(stages[i].starts_with)) != 0)
			continue;
		w->stage = &stages[i];
		w->total = w->seen = 0;
		watch_show(w);
		return;
	}
	if (sscanf(line, "%*u upgraded, %u newly installed", &n) == 1 && n)
		w->total = n * 3;	/* each is fetched, unpacked, set up */
	if (strncmp(line, "E: ", 3) == 0 && !w->last_error)
		w->last_error = xstrdup(line + 3);
	if (w->stage && w->total &&
	    (strncmp(line, "Get:", 4) == 0 || strncmp(line, "Unpacking ", 10) == 0 ||
	     strncmp(line, "Setting up ", 11) == 0)) {
		w->seen++;
		watch_show(w);
	}
}

/* How this host's apt reaches its mirror, and whether an old Release file will
 * do, are true of the same mirror here (apt.conf(5)). */
static void add_apt_options(struct strv *argv)
{
	static const char *const keys[] = {
		"Acquire::http::Proxy ", "Acquire::http::Proxy::", "Acquire::https::Proxy ",
		"Acquire::https::Proxy::", "Acquire::Check-Valid-Until ", "Acquire::Check-Date ",
	};
	const char *dump[] = { "apt-config", "dump", "--no-empty", NULL };
	struct child_spec spec = { .argv = dump, .max_output_bytes = 1 << 20 };
	scoped_child_result struct child_result r = { 0 };
	scoped_strv struct strv lines = { 0 };
	const char *line;

	if (child_run_ok(&spec, &r, &(struct error){ 0 }) < 0)
		return;
	strv_split(&lines, buf_str(&r.out), "\n");
	strv_foreach(line, &lines)
		for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
			if (strncmp(line, keys[i], strlen(keys[i])) == 0)
				strv_addf(argv, "--aptopt=%s", line);
}

static void add_arguments(const struct build_spec *s, const char *tar, struct strv *argv)
{
	scoped_free char *packages = strv_join(&s->packages, ",");
	const char *mirror = build_spec_mirror();

	strv_add_all(argv, "mmdebstrap", "--verbose", "--variant=apt", "--format=tar", NULL);
	strv_addf(argv, "--mode=%s", is_root() ? "root" : "unshare");
	strv_addf(argv, "--architectures=%s", s->debian_arch);
	strv_addf(argv, "--include=%s", packages);
	/* Ubuntu's apt does not trust them by itself; what it trusts besides counts, too
	 * (mmdebstrap(1), --keyring), so a mirror with keys of its own works as well. */
	strv_addf(argv, "--keyring=%s", debian_keys);
	/* Documentation and translations of the base system, half of its files;
	 * packages installed later come whole (assemble.sh removes this setting). */
	strv_add_all(argv, "--dpkgopt=path-exclude=/usr/share/doc/*",
		     "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		     "--dpkgopt=path-exclude=/usr/share/man/*",
		     "--dpkgopt=path-exclude=/usr/share/locale/*",
		     "--aptopt=Acquire::Languages \"none\"", NULL);
	add_apt_options(argv);
	strv_add_all(argv, s->suite, tar, NULL);
	if (mirror)
		strv_add(argv, mirror);
}

static void add_environment(const char *tmp, struct strv *env)
{
	static const char *const ours[] = { "TMPDIR=", "LC_ALL=", "LANG=", "DEBIAN_FRONTEND=" };

	for (char **e = environ; *e; e++) {
		bool skip = false;

		for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
			skip |= strncmp(*e, ours[i], strlen(ours[i])) == 0;
		if (!skip)
			strv_add(env, *e);
	}
	strv_addf(env, "TMPDIR=%s", tmp);
	strv_add_all(env, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", NULL);
}

int build_run_bootstrap(const struct build_spec *s, const char *work, const char *tmp,
			const struct progress *progress, struct error *err)
{
	struct watch w = { .progress = progress, .spec = s };
	scoped_free char *tar = xasprintf("%s/rootfs.tar", work);
	scoped_strv struct strv argv = { 0 }, env = { 0 };
	scoped_child_result struct child_result r = { 0 };
	struct child_spec spec = { .own_group = true, .on_stdout_line = on_line,
				   .on_stderr_line = on_line, .line_arg = &w };
	int rc;

	add_arguments(s, tar, &argv);
	add_environment(tmp, &env);
	spec.argv = (const char *const *)argv.items;
	spec.env = (const char *const *)env.items;
	rc = child_run_ok(&spec, &r, err);
	if (rc < 0 && rc != -ECANCELED && w.last_error)
		error_set(err, rc, "mmdebstrap: %s", w.last_error);
	free(w.last_error);
	return rc;
}

/* --- our scripts ------------------------------------------------------------------ */

/* In the user's namespace the user is root (0) and the subordinate ids are all
 * others, so what the user owns outside is root's inside. */
static void add_rights(struct strv *argv)
{
	if (!is_root())
		strv_add_all(argv, "unshare", "--map-auto", "--map-root-user", NULL);
}

int build_run_script(const char *script, const char *work, const char *arg, struct error *err)
{
	scoped_strv struct strv argv = { 0 };
	scoped_child_result struct child_result r = { 0 };
	struct child_spec spec = { .own_group = true };

	add_rights(&argv);
	strv_add(&argv, "sh");
	strv_addf(&argv, "%s/files/%s", work, script);
	strv_add(&argv, work);
	if (arg)
		strv_add(&argv, arg);
	spec.argv = (const char *const *)argv.items;
	if (child_run_ok(&spec, &r, err) < 0)
		return err->code == -ECANCELED ? err->code : error_wrap(err, "%s", script);
	return 0;
}

void build_run_remove(const char *path)
{
	scoped_strv struct strv argv = { 0 };
	scoped_free char *program = NULL;
	pid_t pid;

	if (path_remove_tree(path, &(struct error){ 0 }) == 0)
		return;
	/* child_run() would end at once: this runs because an interrupt came. */
	add_rights(&argv);
	strv_add_all(&argv, "rm", "-rf", "--one-file-system", "--", path, NULL);
	program = path_find_program(argv.items[0]);
	if (program && posix_spawn(&pid, program, NULL, NULL, argv.items, environ) == 0)
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
}
