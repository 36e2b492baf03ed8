#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/build_impl.h"
#include "lib/store/decompress.h"

enum { FILE_MAX_BYTES = 64 << 20 };

/* The disk first, then what the seed (a SCSI CD), the network, the agent's port and
 * the vsock need: loaded here it costs a tenth of what udev takes for it, and udev
 * only comes after sshd. */
static const char *const wanted_modules[] = {
	"virtio_pci", "virtio_scsi", "sr_mod", "isofs", "virtio_blk", "ext4",
	"virtio_net", "virtio_console", "vmw_vsock_virtio_transport", NULL,
};
static const char *const applets[] = {
	"cat", "chmod", "cttyhack", "dmesg", "findfs", "insmod", "ls", "mkdir", "mknod", "mount",
	"setsid", "sh", "switch_root", "tr", "usleep",
};

/* --- which modules, in which order ---------------------------------------- */

/* "kernel/drivers/net/virtio_net.ko.xz" is "virtio_net". */
static char *module_name(const char *path, size_t len)
{
	const char *slash = memrchr(path, '/', len);
	size_t start = slash ? (size_t)(slash - path) + 1 : 0;
	char *name = xstrndup(path + start, len - start), *dot = strstr(name, ".ko");

	if (dot)
		*dot = 0;
	for (char *p = name; *p; p++)
		if (*p == '-')
			*p = '_';
	return name;
}

/* The line "PATH: DEPENDENCY…" of the module called @name; NULL: built in or unknown. */
static const char *find_line(const char *deps, const char *name)
{
	for (const char *line = deps; line && *line;) {
		size_t len = strcspn(line, ":\n");
		scoped_free char *have = module_name(line, len);
		const char *end = strchr(line, '\n');

		if (streq(have, name))
			return line;
		line = end ? end + 1 : NULL;
	}
	return NULL;
}

/* modules.dep lists all a module needs, the nearest first, so that backwards is
 * an order to load in (modules.dep(5)). */
static void add_module(const char *line, struct strv *ret)
{
	size_t path_len = strcspn(line, ":"), line_len = strcspn(line, "\n");
	scoped_free char *path = xstrndup(line, path_len);
	scoped_free char *rest = xstrndup(line + path_len + 1, line_len - path_len - 1);
	scoped_strv struct strv needs = { 0 };

	strv_split(&needs, rest, " ");
	for (size_t i = needs.len; i > 0; i--)
		if (!strv_contains(ret, needs.items[i - 1]))
			strv_add(ret, needs.items[i - 1]);
	if (!strv_contains(ret, path))
		strv_add(ret, path);
}

void build_initrd_order(const char *deps, const char *const *wanted, struct strv *ret)
{
	for (; *wanted; wanted++) {
		const char *line = find_line(deps, *wanted);

		if (line)
			add_module(line, ret);
	}
}

/* --- the archive ------------------------------------------------------------ */

/* cpio "newc": Linux Documentation/driver-api/early-userspace/buffer-format.rst */
static void add_entry(struct buf *b, const char *name, unsigned mode, const void *data, size_t len)
{
	static const char zeros[4];
	size_t name_len = strlen(name) + 1;

	buf_addf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08zX%08X",
		 (unsigned)b->len + 1, mode, 0, 0, 1, 0, (unsigned)len, 0, 0, 0, 0, name_len, 0);
	buf_add(b, name, name_len);
	buf_add(b, zeros, -b->len & 3);
	if (len)
		buf_add(b, data, len);
	buf_add(b, zeros, -b->len & 3);
}

static int add_file(struct buf *b, const char *name, unsigned mode, const char *path,
		    struct error *err)
{
	scoped_buf struct buf content = { 0 };

	if (path_read_file(path, FILE_MAX_BYTES, &content, err) < 0)
		return err->code;
	add_entry(b, name, 0100000 | mode, content.data, content.len);
	return 0;
}

static int add_module_file(struct buf *b, const char *work, const char *version, const char *module,
			   struct strv *names, struct error *err)
{
	scoped_free char *from = xasprintf("%s/root/usr/lib/modules/%s/%s", work, version, module);
	scoped_free char *plain = xasprintf("%s/module.ko", work);
	const char *base = strrchr(module, '/') ? strrchr(module, '/') + 1 : module;
	scoped_free char *name = xasprintf("%.*s", (int)(strstr(base, ".ko") + 3 - base), base);
	scoped_free char *inside = xasprintf("modules/%s", name);
	enum compression compression;
	int rc;

	if (decompress_probe(from, NULL, &compression, err) < 0)
		return err->code;
	strv_add(names, name);
	if (compression == COMPRESSION_NONE)
		return add_file(b, inside, 0644, from, err);
	unlink(plain);
	if (decompress_file(from, plain, "unpacking a module", NULL, err) < 0)
		return err->code;
	rc = add_file(b, inside, 0644, plain, err);
	unlink(plain);
	return rc;
}

static int add_modules(struct buf *b, const char *work, const char *version, struct error *err)
{
	scoped_free char *deps_path = xasprintf("%s/root/usr/lib/modules/%s/modules.dep", work,
						version);
	scoped_buf struct buf deps = { 0 };
	scoped_strv struct strv order = { 0 }, names = { 0 };
	scoped_free char *list = NULL;
	const char *module;

	if (path_read_file(deps_path, FILE_MAX_BYTES, &deps, err) < 0)
		return err->code;
	build_initrd_order(buf_str(&deps), wanted_modules, &order);
	strv_foreach(module, &order) {
		if (!strstr(module, ".ko"))
			return error_set(err, -EINVAL, "%s: `%s` is no module", deps_path, module);
		if (add_module_file(b, work, version, module, &names, err) < 0)
			return err->code;
	}
	strv_add(&names, "");	/* a line break behind the last name, too */
	list = strv_join(&names, "\n");
	add_entry(b, "modules/order", 0100644, list, strlen(list));
	return 0;
}

static int add_busybox(struct buf *b, const char *work, struct error *err)
{
	/* /bin is a link to usr/bin in every suite, but not what the package says. */
	scoped_free char *usr = xasprintf("%s/root/usr/bin/busybox", work);
	scoped_free char *bin = xasprintf("%s/root/bin/busybox", work);

	if (add_file(b, "bin/busybox", 0755, path_exists(usr) ? usr : bin, err) < 0)
		return err->code;
	for (size_t i = 0; i < ARRAY_SIZE(applets); i++) {
		scoped_free char *name = xasprintf("bin/%s", applets[i]);

		add_entry(b, name, 0120777, "busybox", strlen("busybox"));
	}
	return 0;
}

int build_initrd(const char *work, const char *kernel_version, struct error *err)
{
	static const char *const dirs[] = { "bin", "dev", "proc", "sys", "new", "modules" };
	scoped_free char *nodes = xasprintf("%s/nodes", work);
	scoped_free char *init = xasprintf("%s/files/initrd-init.sh", work);
	scoped_free char *out = xasprintf("%s/out/initrd", work);
	scoped_buf struct buf b = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++)
		add_entry(&b, dirs[i], 040755, NULL, 0);
	if (add_busybox(&b, work, err) < 0 || add_file(&b, "init", 0755, init, err) < 0 ||
	    add_modules(&b, work, kernel_version, err) < 0 ||
	    add_file(&b, "modules/nodes", 0644, nodes, err) < 0)
		return error_wrap(err, "initrd");
	add_entry(&b, "TRAILER!!!", 0, NULL, 0);
	return path_write_file(out, b.data, b.len, 0644, err);
}
