/* host.h - what the builtin defaults take from this host
 *
 * Asked once in a process: `limactl list` resolves every instance.
 */
#pragma once

#include <stdint.h>

struct host_facts {
	char *user, *comment, *home;	/* of who runs us */
	unsigned uid;
	char *timezone;			/* "Europe/Berlin"; "" unknown */
	char *temp_dir;			/* $TMPDIR or /tmp */
	unsigned cpus;			/* that we may use */
	uint64_t memory_bytes;
};
const struct host_facts *host_facts(void);	/* never freed */
