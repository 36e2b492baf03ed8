/* cidata_impl.h - what the parts of the seed's writer share
 *
 * cidata.c collects the files, cidata_env.c makes the ones a shell reads,
 * cidata_cloud.c those cloud-init reads, cidata_key.c the guest's host key.
 */
#pragma once

#include "hostagent/cidata.h"
#include "lib/base/buf.h"

/* The spec with its defaults filled in, and what was found out for it. */
struct cidata_facts {
	const struct cidata_spec *spec;
	const char *address, *gateway, *dns;	/* of the user network */
	char *instance_id;
	struct buf host_key, host_key_pub;	/* OpenSSH's texts */
	char agent_sum[72];			/* "sha256:HEX", "" without an agent */
};

/* Checks that nothing of the config would break out of its line in the files
 * below: names, paths, keys. */
int cidata_env_check(const struct cidata_spec *spec, struct error *err);
/* lima.env without what changes at each start; also what is digested. */
void cidata_env_lima(const struct cidata_facts *f, struct buf *b);
void cidata_env_param(const struct config *config, struct buf *b);
/* `env:` and the proxies of this process's environment. */
void cidata_env_environment(const struct cidata_facts *f, struct buf *b);
void cidata_env_hosts(const struct cidata_facts *f, struct buf *b);

/* user-data; @with_keys: false leaves the host key out (the copy to read).
 * @mount: the text that mounts the seed in the guest. */
void cidata_cloud_user_data(const struct cidata_facts *f, const char *mount, bool with_keys,
			    struct buf *b);
void cidata_cloud_meta_data(const struct cidata_facts *f, struct buf *b);
void cidata_cloud_network(const struct cidata_facts *f, struct buf *b);

/* The name servers the guest is told: `dns:`, else the user network's. */
void cidata_name_servers(const struct cidata_facts *f, struct strv *ret);

/* INSTDIR/ssh_host_ed25519_key{,.pub}, made when missing, and ssh_known_hosts. */
int cidata_key_ensure(const struct cidata_spec *spec, struct buf *ret_key, struct buf *ret_pub,
		      struct error *err);
