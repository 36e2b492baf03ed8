#include "lib/store/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/utf8.h"
#include "lib/store/disk.h"

enum { SHOWN_TAG_BYTES = 200 };

static const struct {
	const char *name, *option;	/* of ours, of qemu-img snapshot */
} changes[] = {
	[SNAPSHOT_CREATE] = { "create", "-c" },
	[SNAPSHOT_APPLY] = { "apply", "-a" },
	[SNAPSHOT_DELETE] = { "delete", "-d" },
};

const char *snapshot_change_name(enum snapshot_change change)
{
	return changes[change].name;
}

/* --- lists ------------------------------------------------------------------------ */

void snapshot_list_done(struct snapshot_list *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->items[i].tag);
	free(l->items);
	*l = (struct snapshot_list){ 0 };
}

static uint64_t number(const json_t *o, const char *key)
{
	json_int_t v = json_integer_value(json_object_get(o, key));

	return v > 0 ? (uint64_t)v : 0;
}

/* QEMU qapi/block-core.json, SnapshotInfo */
void snapshot_list_parse(struct snapshot_list *l, const json_t *array)
{
	const json_t *o;
	size_t i;

	json_array_foreach(array, i, o) {
		const char *tag = json_string_value(json_object_get(o, "name"));

		l->items = xrealloc(l->items, (l->n + 1) * sizeof(*l->items));
		l->items[l->n++] = (struct snapshot){
			.tag = xstrdup(tag ? tag : ""),
			.taken_s = (int64_t)number(o, "date-sec"),
			.vm_clock_ms = number(o, "vm-clock-sec") * 1000 +
				       number(o, "vm-clock-nsec") / 1000000,
			.memory_bytes = number(o, "vm-state-size"),
		};
	}
}

json_t *snapshot_json(const struct snapshot *s)
{
	scoped_free char *tag = log_escape(s->tag, SHOWN_TAG_BYTES);
	char date[sizeof("2026-01-02T15:04:05Z")] = "";
	time_t at = (time_t)s->taken_s;
	struct tm tm;

	if (gmtime_r(&at, &tm) && tm.tm_year < 9999 - 1900)
		strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", &tm);
	return json_pack("{s:s, s:s, s:I, s:I}", "tag", tag, "date", date, "vmClockMillis",
			 (json_int_t)s->vm_clock_ms, "memoryBytes", (json_int_t)s->memory_bytes);
}

/* --- what may be done ---------------------------------------------------------------- */

/* qemu-img takes a number for QEMU's own id of a snapshot before it takes it for a
 * tag, and what begins with "-" for an option. */
int snapshot_check_tag(const char *tag, struct error *err)
{
	scoped_free char *shown = log_escape(tag, SHOWN_TAG_BYTES);
	size_t len = strlen(tag);

	if (!len || len > SNAPSHOT_TAG_MAX_BYTES)
		return error_set(err, -EINVAL, "a tag has 1 to %d bytes, not %zu",
				 SNAPSHOT_TAG_MAX_BYTES, len);
	if (!utf8_valid(tag, len) || !streq(shown, tag))
		return error_set(err, -EINVAL, "tag `%s`: only what can be printed is possible", shown);
	if (*tag == '-')
		return error_set(err, -EINVAL, "tag `%s`: it may not begin with `-`", tag);
	if (strspn(tag, "0123456789") == len)
		return error_set(err, -EINVAL, "tag `%s`: a number alone would be taken for QEMU's id "
				 "of a snapshot; put a letter into it", tag);
	return 0;
}

static const struct snapshot *find(const struct snapshot_list *l, const char *tag)
{
	for (size_t i = 0; i < l->n; i++)
		if (streq(l->items[i].tag, tag))
			return &l->items[i];
	return NULL;
}

static int tell_missing(const struct snapshot_list *l, const char *tag, struct error *err)
{
	scoped_buf struct buf names = { 0 };

	for (size_t i = 0; i < l->n && names.len < 400; i++) {
		scoped_free char *shown = log_escape(l->items[i].tag, SHOWN_TAG_BYTES);

		buf_addf(&names, "%s%s", i ? ", " : "", shown);
	}
	return error_set(err, -ENOENT, "there is no snapshot `%s`; there %s%s", tag,
			 l->n ? "are: " : "is none", buf_str(&names));
}

int snapshot_check_change(const struct snapshot_list *l, enum snapshot_change change,
			  const char *tag, bool running, struct error *err)
{
	const struct snapshot *s = find(l, tag);

	if (change == SNAPSHOT_CREATE && s)
		return error_set(err, -EEXIST, "there is a snapshot `%s` already; take another tag or "
				 "delete it first", tag);
	if (change == SNAPSHOT_CREATE && l->n >= SNAPSHOT_MAX)
		return error_set(err, -ENOSPC, "there are %zu snapshots already; delete some first",
				 l->n);
	if (change != SNAPSHOT_CREATE && !s)
		return tell_missing(l, tag, err);
	if (change == SNAPSHOT_APPLY && running && !s->memory_bytes)
		return error_set(err, -ENOTSUP, "snapshot `%s` is of the disk alone, it was taken of a "
				 "stopped machine; stop this one to go back to it", tag);
	return 0;
}

/* --- a disk that nobody uses ------------------------------------------------------------ */

static int check_disk(const char *path, struct error *err)
{
	struct disk_info info;

	if (disk_inspect(path, &info, err) < 0)
		return err->code;
	if (info.has_backing)
		return disk_refuse_outside(path, err);
	if (!streq(info.format, "qcow2"))
		return error_set(err, -ENOTSUP, "%s: a disk in format %s cannot hold snapshots, only "
				 "qcow2 can", path, info.format);
	return 0;
}

int snapshot_disk_list(const char *path, struct snapshot_list *ret, struct error *err)
{
	scoped_child_result struct child_result res = { 0 };
	scoped_free char *opts = NULL;
	json_t *root;

	if (check_disk(path, err) < 0)
		return err->code;
	opts = disk_image_opts("qcow2", path);
	const char *const argv[] = { "qemu-img", "info", "--output=json", "-U", "--image-opts", opts,
				     NULL };
	if (disk_run_qemu_img(argv, &res, err) < 0)
		return err->code;
	root = json_loadb((const char *)res.out.data, res.out.len, 0, NULL);
	if (!root)
		return error_set(err, -EPROTO, "%s: qemu-img info gave no JSON", path);
	snapshot_list_parse(ret, json_object_get(root, "snapshots"));
	json_decref(root);
	return 0;
}

int snapshot_disk_change(const char *path, enum snapshot_change change, const char *tag,
			 struct error *err)
{
	scoped_child_result struct child_result res = { 0 };
	scoped_snapshot_list struct snapshot_list list = { 0 };
	scoped_free char *opts = NULL;

	if (snapshot_check_tag(tag, err) < 0 || snapshot_disk_list(path, &list, err) < 0 ||
	    snapshot_check_change(&list, change, tag, false, err) < 0)
		return err->code;
	opts = disk_image_opts("qcow2", path);
	const char *const argv[] = { "qemu-img", "snapshot", "-q", "--image-opts",
				     changes[change].option, tag, opts, NULL };
	return disk_run_qemu_img(argv, &res, err);
}
