/* provision.h - how far the guest's boot scripts are, for the host to follow
 *
 * The scripts (seed, boot.sh and its units) leave files in one directory:
 *
 *	instance_id	which seed this boot belongs to, one line
 *	ssh_ready	exists: user, keys and environment are in place
 *	boot_done	exists: everything ran
 *	step		what runs now, one line
 *	failed		scripts that failed, one a line
 *
 * The directory may appear later, files too. All text is bounded and made
 * valid UTF-8 before it goes into a message; the host escapes it for display.
 */
#pragma once

#include "lib/base/loop.h"
#include "proto/guestservice.pb-c.h"

#define PROVISION_DIR "/run/lima-boot-progress"

struct provision;

enum {
	PROVISION_TEXT_MAX = 256,
	PROVISION_FAILED_MAX = 32,
};

/* @changed: provision_current() differs from before. */
struct provision *provision_new(struct loop *loop, const char *dir, void (*changed)(void *arg),
				void *arg);
const BootProgress *provision_current(const struct provision *p);
void provision_close(struct provision *p, void (*closed)(void *arg), void *arg);
