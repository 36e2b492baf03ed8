#include "lib/store/instance.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/utf8.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"
#include "lib/store/pid.h"
#include "lib/store/sparse.h"

enum {
	YAML_MAX_BYTES = 4 << 20,   /* config_load() takes no more */
	SMALL_MAX_BYTES = 64 << 10, /* ssh.config, lima-version */
};

#define TMP_PREFIX ".tmp-" /* + pid + "-" + name */
#define MACHINE_ID "systemd.machine_id="

static const char *const status_names[] = {
	[STATUS_UNKNOWN] = "",
	[STATUS_UNINITIALIZED] = "Uninitialized",
	[STATUS_INSTALLING] = "Installing",
	[STATUS_BROKEN] = "Broken",
	[STATUS_STOPPED] = "Stopped",
	[STATUS_RUNNING] = "Running",
	[STATUS_STARTING] = "Starting",
	[STATUS_STOPPING] = "Stopping",
};
static_assert(ARRAY_SIZE(status_names) == STATUS_COUNT, "a name for every status");

const char *instance_status_name(enum instance_status s)
{
	assert(s < STATUS_COUNT);
	return status_names[s];
}

void instance_free(struct instance *inst)
{
	if (!inst)
		return;
	free(inst->name);
	free(inst->dir);
	free(inst->hostname);
	free(inst->lima_home);
	free(inst->lima_version);
	strv_done(&inst->errors);
	config_problems_done(&inst->problems);
	config_free(inst->config);
	free(inst);
}

static void set_broken(struct instance *inst, char *why)
{
	inst->status = STATUS_BROKEN;
	strv_take(&inst->errors, why);
}

static void load_config(struct instance *inst)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_LIMA_YAML);
	const struct config_context ctx = {
		.instance = inst->name,
		.instance_dir = inst->dir,
		.lima_home = inst->lima_home,
	};
	scoped_buf struct buf yaml = { 0 };
	struct error err = ERROR_NONE;
	const char *problem;
	int rc = path_read_file(path, YAML_MAX_BYTES, &yaml, &err);

	if (rc == -ENOENT) {
		set_broken(inst,
			   xasprintf("`%s` has no lima.yaml: `limactl delete -f %s` removes it",
				     inst->dir, inst->name));
		return;
	}
	if (rc == 0)
		rc = config_load(&ctx, path, buf_str(&yaml), yaml.len, &inst->problems,
				 &inst->config, &err);
	if (rc == 0)
		return;
	inst->status = STATUS_BROKEN;
	strv_foreach (problem, &inst->problems.errors)
		strv_add(&inst->errors, problem);
	if (inst->problems.errors.len == 0)
		strv_add(&inst->errors, err.msg);
}

/* One of the two processes alone: on its way up or down, or an accident. */
static void judge_half_alive(struct instance *inst)
{
	struct lock_holder holder;

	if (lock_instance_holder(inst->dir, &holder)) {
		bool down = streq(holder.verb, "stop") || streq(holder.verb, "delete");

		if (inst->status != STATUS_BROKEN)
			inst->status = down ? STATUS_STOPPING : STATUS_STARTING;
		return;
	}
	if (inst->driver_pid)
		set_broken(inst, xasprintf("the host agent is gone but QEMU (pid %d) still runs: "
					   "`limactl start %s` takes it over again, "
					   "`limactl stop -f %s` ends it",
					   (int)inst->driver_pid, inst->name, inst->name));
	else
		set_broken(inst,
			   xasprintf("the host agent (pid %d) runs but QEMU does not: it is "
				     "starting, stopping or stuck; `limactl stop -f %s` ends it",
				     (int)inst->ha_pid, inst->name));
}

static void read_processes(struct instance *inst)
{
	scoped_free char *ha = layout_instance_file(inst->dir, FILE_HA_PID);
	scoped_free char *qemu = layout_instance_file(inst->dir, FILE_QEMU_PID);
	scoped_free char *qmp = layout_instance_file(inst->dir, FILE_QMP_SOCK);

	inst->ha_pid = pid_file_read(ha, "limactl");
	inst->driver_pid = pid_file_read(qemu, "qemu");
	/* A VM without its pid file still has its disk open. Not asked while a host
	 * agent is there to ask for. */
	if (!inst->ha_pid && !inst->driver_pid)
		inst->driver_pid = pid_of_listener(qmp, "qemu");
	if (!inst->ha_pid != !inst->driver_pid) {
		judge_half_alive(inst);
		return;
	}
	if (inst->status == STATUS_UNKNOWN)
		inst->status = inst->ha_pid ? STATUS_RUNNING : STATUS_STOPPED;
}

static void read_ssh_port(struct instance *inst)
{
	scoped_free char *path = layout_instance_file(inst->dir, FILE_SSH_CONFIG);
	scoped_buf struct buf b = { 0 };
	struct error err;

	if (path_read_file(path, SMALL_MAX_BYTES, &b, &err) < 0)
		return;
	for (const char *line = buf_str(&b); line; line = strchr(line, '\n')) {
		unsigned port;

		line += strspn(line, "\n \t");
		if (sscanf(line, "Port %u", &port) == 1 && port <= UINT16_MAX) {
			inst->ssh_local_port = (uint16_t)port;
			return;
		}
	}
}

static char *read_version(const char *dir)
{
	scoped_free char *path = layout_instance_file(dir, FILE_LIMA_VERSION);
	scoped_buf struct buf b = { 0 };
	struct error err;

	if (path_read_file(path, SMALL_MAX_BYTES, &b, &err) < 0)
		return xstrdup("");
	scoped_free char *line = xstrndup(buf_str(&b), strcspn(buf_str(&b), "\r\n"));
	return utf8_clean(line);
}

int instance_inspect(const char *lima_home, const char *name, struct instance **ret,
		     struct error *err)
{
	scoped_free char *dir = NULL, *protected = NULL;
	struct instance *inst;
	struct stat st;

	if (!*name || *name == '.' || strchr(name, '/'))
		return error_set(err, -EINVAL, "`%s` is not an instance name", name);
	dir = layout_instance_dir(lima_home, name);
	if (stat(dir, &st) < 0) {
		if (errno == ENOENT)
			return error_set(err, -ENOENT, "instance `%s` does not exist", name);
		return error_sys(err, -errno, "instance `%s`: %s", name, dir);
	}
	if (!S_ISDIR(st.st_mode))
		return error_set(err, -ENOENT, "instance `%s` does not exist: %s is a file", name,
				 dir);
	protected = layout_instance_file(dir, FILE_PROTECTED);
	inst = xnew(struct instance);
	inst->name = xstrdup(name);
	inst->lima_home = xstrdup(lima_home);
	inst->hostname = layout_hostname(name);
	inst->lima_version = read_version(dir);
	inst->is_protected = path_exists(protected);
	inst->dir = steal_ptr(&dir);
	load_config(inst);
	read_processes(inst);
	read_ssh_port(inst);
	*ret = inst;
	return 0;
}

static bool is_listed(int dirfd, const struct dirent *de)
{
	struct stat st;

	if (de->d_name[0] == '.' || de->d_name[0] == '_' ||
	    !utf8_valid(de->d_name, strlen(de->d_name)))
		return false;
	for (const char *p = de->d_name; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			return false; /* not made by us, and hostile to a terminal */
	if (de->d_type == DT_DIR)
		return true;
	if (de->d_type != DT_UNKNOWN && de->d_type != DT_LNK)
		return false;
	return fstatat(dirfd, de->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

int instance_list(const char *lima_home, struct strv *ret, struct error *err)
{
	scoped_strv struct strv names = { 0 };
	scoped_dir DIR *dir = opendir(lima_home);
	struct dirent *de;
	const char *name;

	if (!dir)
		return errno == ENOENT ? 0 : error_sys(err, -errno, "open %s", lima_home);
	while ((de = readdir(dir)))
		if (is_listed(dirfd(dir), de))
			strv_add(&names, de->d_name);
	if (names.len)
		qsort(names.items, names.len, sizeof(*names.items), compare_names);
	strv_foreach (name, &names)
		strv_add(ret, name);
	return 0;
}

static char *tmp_dir(const char *lima_home, const char *name)
{
	return xasprintf("%s/" TMP_PREFIX "%d-%s", lima_home, (int)getpid(), name);
}

/* What creators and removers that died left behind. Under the creation lock, so
 * one with our own pid is a leftover too. Failing to sweep fails nothing. */
static void sweep_leftovers(const char *lima_home)
{
	scoped_dir DIR *dir = opendir(lima_home);
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		struct error err;
		int pid;

		if (sscanf(de->d_name, TMP_PREFIX "%d-", &pid) != 1 || pid <= 0)
			continue;
		if (pid != getpid() && (kill(pid, 0) == 0 || errno == EPERM))
			continue;
		scoped_free char *path = xasprintf("%s/%s", lima_home, de->d_name);
		path_remove_tree(path, &err);
	}
}

static int fill_instance_dir(const char *dir, const char *yaml, size_t yaml_len, struct error *err)
{
	scoped_free char *yaml_path = layout_instance_file(dir, FILE_LIMA_YAML);
	scoped_free char *version_path = layout_instance_file(dir, FILE_LIMA_VERSION);

	if (mkdir(dir, 0700) < 0)
		return error_sys(err, -errno, "mkdir %s", dir);
	if (path_write_file(yaml_path, yaml, yaml_len, 0644, err) < 0)
		return err->code;
	return path_write_file(version_path, LIMA_VERSION, strlen(LIMA_VERSION), 0444, err);
}

/* renameat2 so that not even an empty directory of that name is replaced; file
 * systems without it (-EINVAL) are guarded by the creation lock and path_exists. */
static int move_in_place(const char *from, const char *to, struct error *err)
{
	if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
		return 0;
	if ((errno == EINVAL || errno == ENOSYS) && rename(from, to) == 0)
		return 0;
	return error_sys(err, -errno, "rename %s", to);
}

static int check_free(const char *dir, const char *name, struct error *err)
{
	scoped_free char *yaml = layout_instance_file(dir, FILE_LIMA_YAML);

	if (!path_exists(dir))
		return 0;
	if (path_exists(yaml))
		return error_set(err, -EEXIST, "instance `%s` already exists", name);
	return error_set(
		err, -EEXIST,
		"`%s` already exists, without a lima.yaml: `limactl delete -f %s` removes it", dir,
		name);
}

int instance_create(const char *lima_home, const char *name, const char *yaml, size_t yaml_len,
		    struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);
	scoped_free char *tmp = tmp_dir(lima_home, name);
	scoped_fd int lock = -1;
	struct error ignored;

	if (layout_check_name(name, err) < 0 || layout_check_socket_paths(dir, err) < 0)
		return err->code;
	if (lock_creation(lima_home, "create", &lock, err) < 0 && err->code != -EDEADLK)
		return error_wrap(err, "create `%s`", name);
	*err = ERROR_NONE;
	if (check_free(dir, name, err) < 0)
		return err->code;
	sweep_leftovers(lima_home);
	if (fill_instance_dir(tmp, yaml, yaml_len, err) < 0 || move_in_place(tmp, dir, err) < 0 ||
	    path_sync_dir(lima_home, err) < 0) {
		path_remove_tree(tmp, &ignored);
		return error_wrap(err, "create `%s`", name);
	}
	return 0;
}

int instance_check_new(const char *lima_home, const char *name, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);

	if (layout_check_name(name, err) < 0 || layout_check_socket_paths(dir, err) < 0)
		return err->code;
	return check_free(dir, name, err);
}

/* @from becomes the instance @name. */
static int take_name(const char *lima_home, const char *from, const char *name, const char *verb,
		     struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);
	scoped_fd int lock = -1;

	if (lock_creation(lima_home, verb, &lock, err) < 0 ||
	    instance_check_new(lima_home, name, err) < 0 ||
	    move_in_place(from, dir, err) < 0)
		return err->code;
	return path_sync_dir(lima_home, err);
}

static int replace_yaml(const char *dir, const struct buf *yaml, struct error *err)
{
	scoped_free char *path = layout_instance_file(dir, FILE_LIMA_YAML);

	return path_write_file(path, yaml->data, yaml->len, 0644, err);
}

static int clone_files(const struct instance *from, const char *to, const struct progress *progress,
		       struct error *err)
{
	static const enum instance_file files[] = {
		FILE_LIMA_YAML, FILE_LIMA_VERSION, FILE_IMAGE, FILE_IMAGE_NAME, FILE_DISK, FILE_ISO,
		FILE_KERNEL, FILE_KERNEL_CMDLINE, FILE_INITRD, FILE_EFI_CODE,
	};

	if (mkdir(to, 0700) < 0)
		return error_sys(err, -errno, "mkdir %s", to);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		scoped_free char *here = layout_instance_file(from->dir, files[i]);
		scoped_free char *there = layout_instance_file(to, files[i]);
		struct stat st;

		if (stat(here, &st) < 0) {
			if (errno == ENOENT && !path_exists(here))
				continue;
			return error_sys(err, -errno, "copy %s", here);
		}
		if (sparse_copy_file(here, there, false, "copying the disk", progress, err) < 0)
			return err->code;
		if (chmod(there, st.st_mode & 0777) < 0)
			return error_sys(err, -errno, "chmod %s", there);
	}
	return 0;
}

/* White space at the end, and what an earlier clone has put there. */
static void cut_machine_id(struct buf *cmdline)
{
	static const char id[] = MACHINE_ID "0123456789abcdef0123456789abcdef";
	const size_t len = sizeof(id) - 1;

	for (;;) {
		while (cmdline->len && strchr(" \t\r\n", cmdline->data[cmdline->len - 1]))
			cmdline->len--;
		if (cmdline->len < len || memcmp(cmdline->data + cmdline->len - len, MACHINE_ID,
						 strlen(MACHINE_ID)) != 0)
			return;
		cmdline->len -= len;
	}
}

/* The id on the disk is @from's: two machines of one id get each other's DHCP leases and
 * mix up their journals. systemd writes what the kernel's command line says over what
 * is there (kernel-command-line(7)), before anything has read it. A disk that boots by
 * itself, without our command line, keeps its id. */
static int give_machine_id(const char *dir, struct error *err)
{
	scoped_free char *kernel = layout_instance_file(dir, FILE_KERNEL);
	scoped_free char *path = layout_instance_file(dir, FILE_KERNEL_CMDLINE);
	scoped_buf struct buf cmdline = { 0 };
	uint8_t id[16];

	if (!path_exists(kernel))
		return 0;
	if (path_exists(path) && path_read_file(path, SMALL_MAX_BYTES, &cmdline, err) < 0)
		return err->code;
	if (getrandom(id, sizeof(id), 0) != sizeof(id))
		return error_sys(err, -errno, "getrandom");
	id[6] = (uint8_t)(0x40 | (id[6] & 0x0f));	/* RFC 9562 5.4, as machine-id(5) asks */
	id[8] = (uint8_t)(0x80 | (id[8] & 0x3f));
	cut_machine_id(&cmdline);
	buf_add_str(&cmdline, cmdline.len ? " " MACHINE_ID : MACHINE_ID);
	for (size_t i = 0; i < sizeof(id); i++)
		buf_addf(&cmdline, "%02x", id[i]);
	buf_add_str(&cmdline, "\n");
	return path_write_file(path, cmdline.data, cmdline.len, 0600, err);
}

int instance_clone(const struct instance *from, const char *name, const struct buf *yaml,
		   const struct progress *progress, struct error *err)
{
	scoped_free char *tmp = tmp_dir(from->lima_home, name);
	struct error ignored;

	if (instance_check_new(from->lima_home, name, err) < 0 || path_remove_tree(tmp, err) < 0)
		return err->code;
	if (clone_files(from, tmp, progress, err) == 0 &&
	    (!yaml || replace_yaml(tmp, yaml, err) == 0) && give_machine_id(tmp, err) == 0 &&
	    path_sync_dir(tmp, err) == 0 &&
	    take_name(from->lima_home, tmp, name, "clone", err) == 0)
		return 0;
	path_remove_tree(tmp, &ignored);
	return err->code;
}

int instance_rename(const struct instance *inst, const char *name, struct error *err)
{
	scoped_free char *id = layout_instance_file(inst->dir, FILE_INSTANCE_ID);

	if (instance_check_new(inst->lima_home, name, err) < 0)
		return err->code;
	/* The network card's address is made from the directory (drivers/mac.h), and
	 * cloud-init sets the network up only for an id that it has not seen
	 * (cloud-init, Events and updates: boot-new-instance). */
	if (unlink(id) < 0 && errno != ENOENT)
		return error_sys(err, -errno, "remove %s", id);
	return take_name(inst->lima_home, inst->dir, name, "rename", err);
}

static bool survives_reset(const char *name)
{
	static const enum instance_file kept[] = {
		FILE_LIMA_VERSION, FILE_PROTECTED, FILE_LOCK, FILE_HOST_PORTS, FILE_LOOPBACK,
	};
	const char *dot = strrchr(name, '.');

	if (dot && (streq(dot, ".yaml") || streq(dot, ".yml")))
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(kept); i++)
		if (streq(name, layout_file_name(kept[i])))
			return true;
	return streq(name, ".") || streq(name, "..");
}

int instance_reset(const struct instance *inst, struct error *err)
{
	scoped_free char *disk = layout_instance_file(inst->dir, FILE_DISK);
	scoped_dir DIR *dir = opendir(inst->dir);
	struct dirent *de;

	if (!dir)
		return error_sys(err, -errno, "open %s", inst->dir);
	/* first: a disk says that all it needs is there */
	if (path_remove_tree(disk, err) < 0)
		return error_wrap(err, "reset `%s`", inst->name);
	while ((de = readdir(dir))) {
		scoped_free char *path = xasprintf("%s/%s", inst->dir, de->d_name);

		if (!survives_reset(de->d_name) && path_remove_tree(path, err) < 0)
			return error_wrap(err, "reset `%s`", inst->name);
	}
	return path_sync_dir(inst->dir, err);
}

int instance_remove(const char *lima_home, const char *name, struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);
	scoped_free char *tmp = tmp_dir(lima_home, name);

	if (path_remove_tree(tmp, err) < 0) /* of a process with our pid that died */
		return error_wrap(err, "delete `%s`", name);
	if (rename(dir, tmp) < 0)
		return error_sys(err, -errno, "delete `%s`: rename %s", name, dir);
	if (path_remove_tree(tmp, err) < 0)
		return error_wrap(err, "delete `%s`", name);
	return path_sync_dir(lima_home, err);
}
