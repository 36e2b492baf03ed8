#include "lib/store/snapshot_room.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"

#define SPARE_BYTES (UINT64_C(64) << 20)

/* proc(5), /proc/PID/status and /proc/meminfo: "VmRSS:	  123456 kB" */
static uint64_t read_kib(const char *text, const char *key)
{
	const char *line = strstr(text, key);
	uint64_t kib = 0;

	if (line)
		sscanf(line + strlen(key), "%" SCNu64, &kib);
	return kib;
}

uint64_t snapshot_room_count(const char *status, const char *meminfo, uint64_t memory_bytes)
{
	uint64_t swap = read_kib(meminfo, "\nSwapTotal:"), unused = read_kib(meminfo, "\nSwapFree:");
	uint64_t kib = read_kib(status, "\nVmRSS:") + (swap - MIN(unused, swap));

	return MIN(kib * 1024, memory_bytes);
}

uint64_t snapshot_room_needed(pid_t pid, uint64_t memory_bytes)
{
	scoped_free char *path = xasprintf("/proc/%d/status", (int)pid);
	scoped_buf struct buf status = { 0 }, meminfo = { 0 };
	struct error err = ERROR_NONE;

	if (path_read_file(path, 64 << 10, &status, &err) < 0 ||
	    path_read_file("/proc/meminfo", 64 << 10, &meminfo, &err) < 0)
		return 0;
	return snapshot_room_count(buf_str(&status), buf_str(&meminfo), memory_bytes);
}

int snapshot_room_check(const char *dir, uint64_t needed_bytes, struct error *err)
{
	struct statvfs v;
	uint64_t bytes;

	/* no blocks at all: a file system that does not tell */
	if (statvfs(dir, &v) < 0 || v.f_blocks == 0)
		return 0;
	bytes = (uint64_t)v.f_bavail * v.f_frsize;
	if (bytes >= SPARE_BYTES && bytes - SPARE_BYTES >= needed_bytes)
		return 0;
	return error_set(err, -ENOSPC, "the guest's memory may take %" PRIu64 " MiB in its disk, and "
			 "%s has %" PRIu64 " MiB free; free some, or stop the instance first: of a "
			 "stopped one it is the disk alone", needed_bytes >> 20, dir, bytes >> 20);
}
