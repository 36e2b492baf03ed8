/* snapshot.h - snapshots inside an instance's disk
 *
 * A qcow2 file can hold states of itself under names (tags). One that was taken
 * while the machine ran has the guest's memory with it and can be gone back to
 * while it runs; one taken of a stopped machine is the disk alone.
 *
 * A running machine's disk belongs to QEMU: these functions change the disk of a
 * stopped one, by qemu-img; what runs is asked by the driver (drivers/driver.h).
 * Both show lists in the same shape (QEMU's SnapshotInfo) and obey the same rules.
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "lib/base/error.h"

enum {
	SNAPSHOT_TAG_MAX_BYTES = 127,
	/* QEMU's list of them has to fit a line of QMP (drivers/qemu/qmp.h), some 200
	 * bytes each */
	SNAPSHOT_MAX = 1000,
};

enum snapshot_change { SNAPSHOT_CREATE, SNAPSHOT_APPLY, SNAPSHOT_DELETE };

struct snapshot {
	char *tag;		/* may be anything, when it was made by somebody else */
	int64_t taken_s;	/* since 1970 */
	uint64_t vm_clock_ms;	/* how long the machine had run */
	uint64_t memory_bytes;	/* 0: disk only */
};

struct snapshot_list {		/* in the order they were taken */
	struct snapshot *items;
	size_t n;
};

void snapshot_list_done(struct snapshot_list *l);
#define scoped_snapshot_list __attribute__((cleanup(snapshot_list_done)))
/* Appends what @array has, SnapshotInfo of QEMU; NULL: nothing. */
void snapshot_list_parse(struct snapshot_list *l, const json_t *array);
/* An object for the API and `snapshot list --json`; the tag is safe to show. */
json_t *snapshot_json(const struct snapshot *s);

/* "create", "apply", "delete" */
const char *snapshot_change_name(enum snapshot_change change);
int snapshot_check_tag(const char *tag, struct error *err);
/* Can @change be made where there are @l? -EEXIST, -ENOENT, -ENOSPC; -ENOTSUP: it is a
 * disk's only and @running. */
int snapshot_check_change(const struct snapshot_list *l, enum snapshot_change change,
			  const char *tag, bool running, struct error *err);

/* The disk at @path, whose machine does not run, which is the caller's to see to. */
int snapshot_disk_list(const char *path, struct snapshot_list *ret, struct error *err);
int snapshot_disk_change(const char *path, enum snapshot_change change, const char *tag,
			 struct error *err);
