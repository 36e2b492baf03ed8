/* ssh_key.h - keys: making them, which private ones to offer, which public ones
 * to put into the guest
 *
 * Ours is LIMA_HOME/_config/user, one for all instances. Those of ~/.ssh join it
 * when `ssh.loadDotSSHPubKeys` is on.
 */
#pragma once

#include "lib/base/error.h"
#include "lib/base/strv.h"

/* A new ed25519 pair, KEY and KEY.pub, without passphrase, over what is there.
 * Made under temporary names: an interrupted ssh-keygen leaves no half key. Blocks
 * for some ms. */
int ssh_key_make(const char *key, const char *comment, struct error *err);

/* For each readable ~/.ssh/NAME.pub that holds a public key: NAME to @identities
 * when that file is there too, and its line to @lines. Either may be NULL. */
void ssh_key_add_dot_ssh(struct strv *identities, struct strv *lines);
