/* snapshot_room.h - is there room for a guest's memory on the host's disk
 *
 * A snapshot of a machine that runs writes the guest's memory into its disk. Where the
 * host's disk is full half way, QEMU gives up with an "Input/output error" and keeps
 * what it wrote until a later snapshot is deleted (QEMU 7.2), and the guest pauses at
 * its next write. So one that may not fit is not begun.
 *
 * How much it will be nobody knows before: pages that are zero are left out. What the
 * machine has in the host's memory, and whatever is in the host's swap, is the most it
 * can be: of whom what is there is, is not told for memory that is shared (proc(5),
 * VmSwap), as the guest's is where it has a vsock device.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "lib/base/error.h"

/* The most bytes for a guest of @memory_bytes that the process @pid runs; 0: not known. */
uint64_t snapshot_room_needed(pid_t pid, uint64_t memory_bytes);
/* The same of the texts of /proc/PID/status and /proc/meminfo. */
uint64_t snapshot_room_count(const char *status, const char *meminfo, uint64_t memory_bytes);
/* -ENOSPC: less than that, and a little for the guest, is free where @dir is. */
int snapshot_room_check(const char *dir, uint64_t needed_bytes, struct error *err);
