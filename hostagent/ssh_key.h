/* ssh_key.h - the user's keys: which private ones to offer, which public ones to
 * put into the guest
 *
 * Ours is LIMA_HOME/_config/user, one for all instances. Those of ~/.ssh join it
 * when `ssh.loadDotSSHPubKeys` is on.
 */
#pragma once

#include "lib/base/strv.h"

/* For each readable ~/.ssh/NAME.pub that holds a public key: NAME to @identities
 * when that file is there too, and its line to @lines. Either may be NULL. */
void ssh_key_add_dot_ssh(struct strv *identities, struct strv *lines);
