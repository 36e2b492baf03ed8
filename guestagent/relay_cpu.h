/* relay_cpu.h - where the relay's thread should run
 *
 * Linux works through the vsock's queues on the CPU that takes the device's interrupts
 * (drivers/virtio's MSI vectors; the transport's workqueue is per CPU). In an emulated
 * guest the relay belongs there too: going from the worker to it then keeps the page
 * tables, which TCG forgets its translated addresses with, and the servers it talks to
 * have the other CPUs. Left to itself the scheduler of a small busy guest has relay and
 * server take turns on one CPU (select_idle_cpu() does not look for an idle one then,
 * SIS_UTIL). Measured with 2 CPUs: half as much again to the guest (docs/performance.md).
 *
 * With hardware virtualization none of this has been measured, and a wake-up costs
 * little: there the scheduler decides.
 */
#pragma once

#include <stdbool.h>

bool relay_cpu_is_emulated(void);
/* The CPU that takes the vsock's interrupts now; -1: there is none, or it is not told.
 * @root: in front of /sys and /proc, "" for the real ones. */
int relay_cpu_find(const char *root);
