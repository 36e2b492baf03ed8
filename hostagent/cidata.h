/* cidata.h - the seed: everything a guest is told by a small read-only disk
 *
 * INSTDIR/cidata.iso, ISO 9660 with Rock Ridge, label `cidata`, rebuilt at each
 * start. A guest with cloud-init reads user-data, meta-data and network-config
 * (NoCloud) and runs boot.sh at each boot; a guest without it (our own image,
 * lib/store/build.h) runs init.sh and then boot.sh. Both share the scripts of
 * hostagent/cidata/, so that there is one way a guest is set up.
 *
 * What makes second boots short:
 *  - the instance id is made once (INSTDIR/instance-id), so cloud-init knows the
 *    machine again;
 *  - LIMA_CIDATA_SEED_SUM is a digest of all that would change the guest's
 *    disk; a guest that has applied it skips to what each boot needs.
 *
 * The guest's ssh host key comes with the seed: made once per instance
 * (INSTDIR/ssh_host_ed25519_key), so its public half is in INSTDIR/ssh_known_hosts
 * before the first connection, and the guest does not spend a second on making
 * one. The seed holds that key and the link secret, so it is 0600 here and only
 * root may look into it there.
 */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"

enum { CIDATA_SECRET_BYTES = 16 };

struct cidata_spec {
	const char *name;		/* instance */
	const char *dir;		/* instance directory, absolute */
	const char *hostname;		/* layout_hostname(); the host key is pinned under it too */
	const struct config *config;
	const struct strv *ssh_public_keys;	/* authorized_keys lines, at least one */
	const char *mac;		/* of the first NIC, "52:55:55:…" */
	const char *guest_agent;	/* file for the guest's architecture; NULL: none (plain) */
	const uint8_t *secret;		/* CIDATA_SECRET_BYTES; NULL: none */
	/* The user network, as text; NULL: 192.168.5.15, .2 and .3. */
	const char *slirp_address, *slirp_gateway, *slirp_dns;
};

/* Writes INSTDIR/cidata.iso (0600), cloud-config.yaml (0444, a copy of user-data
 * to read), and, when they are missing, instance-id, ssh_host_ed25519_key{,.pub}
 * and ssh_known_hosts. Blocks for some 10 ms. */
int cidata_write(const struct cidata_spec *spec, struct error *err);

/* INSTDIR/instance-id, made when missing: "iid-" and 32 hex digits. Files that
 * prove readiness in the guest hold it (/run/lima-ssh-ready, /run/lima-boot-done).
 * Caller frees. */
int cidata_instance_id(const char *dir, char **ret, struct error *err);
