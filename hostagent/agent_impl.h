/* agent_impl.h - the state of the host agent, shared by agent*.c only */
#pragma once

#include "drivers/driver.h"
#include "hostagent/agent.h"
#include "hostagent/banner.h"
#include "hostagent/control.h"
#include "hostagent/events.h"
#include "hostagent/forward/forward.h"
#include "hostagent/guest_link.h"
#include "hostagent/live_rules.h"
#include "hostagent/port_feed.h"
#include "hostagent/port_json.h"
#include "hostagent/ready.h"
#include "hostagent/ssh.h"
#include "hostagent/socket_forward.h"
#include "hostagent/ssh_master.h"
#include "hostagent/steps.h"
#include "lib/base/child.h"
#include "lib/config/config.h"

struct agent {
	const struct agent_options *o;
	struct agent_waits waits;	/* defaults filled in */
	char *dir;
	struct config *config;
	int lock_fd;			/* flock on the instance directory */
	char *instance_id;
	uint8_t secret[GUEST_LINK_SECRET_SIZE];

	struct loop loop;
	uv_signal_t signals[3];
	uv_timer_t logs;		/* looks whether ours have outgrown their bound */
	struct events *events;
	struct control *control;
	struct steps *steps;
	struct rpc *rpc;
	bool stop_asked, stop_forced;	/* by a signal, by a second one */
	struct error why;		/* why it went down; code 0: in order */

	struct agent_vsock *vsock;	/* NULL: there is none */

	struct agent_snapshot *snapshot;	/* one under way; NULL: none */

	/* agent_machine */
	const struct driver_ops *driver_ops;
	struct driver_spec driver_spec;
	struct driver *driver;
	struct driver_info driver_info;
	bool adopted;			/* QEMU ran already */
	bool driver_exited, guest_shutdown;
	bool paused;			/* the machine */
	int port_fd;			/* holds the ssh port until the driver has it */
	uint16_t ssh_port;
	uv_work_t seed_work;
	struct error seed_err;
	struct in6_addr loopback;	/* all zero: none of its own */
	struct forward *forward;
	struct socket_forwards *sockets;
	struct lane *ssh_lane, *direct_lane;	/* as long as forward */
	unsigned lanes_closing;
	struct port_feed *port_feed;
	struct live_rules *live_rules;	/* as long as forward */
	struct guest_link *link;	/* NULL in plain mode */
	bool link_was_up;
	char *agent_socket;		/* host end of the agent's socket over ssh */

	/* agent_guest */
	struct ssh_target ssh;
	struct ssh_master *master;
	struct banner *banner;
	bool sshd_seen;
	uv_timer_t timer;		/* the waiting step's deadline */
	uv_timer_t fallback;		/* next look at the way over ssh */
	struct ready_probe *probe;
	size_t probe_at;		/* config->probes[] being asked */
	unsigned probe_failures;
	struct error probe_err;		/* of the first that failed */
	struct child *forward_child;	/* `ssh -O forward` of the agent's socket */
	bool socket_forwarded;
	bool no_login;			/* ssh was given up */
	bool hopeless;			/* no guest to speak of: later steps are skipped */
	void (*poll)(struct agent *a);	/* the waiting step looks again; NULL: none waits */
	char shown[256];		/* latest progress text */
	struct strv problems;		/* why running will be degraded */
};

/* --- agent.c ------------------------------------------------------------- */
/* Ends the running step as failed, keeping the machine. */
void agent_degrade(struct agent *a, const struct error *why);

/* --- agent_machine.c ----------------------------------------------------- */
/* ssh port (and whether a VM may be there to adopt), before any step. Blocks. */
int agent_machine_prepare(struct agent *a, struct error *err);
bool agent_seed_wanted(void *ctx);
void agent_seed_run(void *ctx, struct steps *s);
void agent_adopt_run(void *ctx, struct steps *s);
void agent_driver_run(void *ctx, struct steps *s);
void agent_driver_abort(void *ctx, struct steps *s);
void agent_driver_undo(void *ctx, struct steps *s);
void agent_driver_force(struct agent *a);
bool agent_has_link(void *ctx);		/* not in plain mode */
void agent_link_run(void *ctx, struct steps *s);
void agent_link_undo(void *ctx, struct steps *s);

/* --- agent_forward.c ----------------------------------------------------- */
/* Before any step. Blocks for a moment. */
int agent_forward_prepare(struct agent *a, struct error *err);
void agent_forward_run(void *ctx, struct steps *s);
void agent_forward_undo(void *ctx, struct steps *s);
void agent_forward_set_paused(struct agent *a, bool paused);

/* --- agent_lanes.c ------------------------------------------------------- */
/* Before any step: what the environment asks for goes into the config. */
void agent_lanes_prepare(struct agent *a);
/* … and into a rule that comes later. */
void agent_lanes_prepare_rule(struct config_port_forward *rule);
/* Somebody is served by ssh alone: the master is wanted at all times. */
bool agent_lanes_want_ssh(const struct agent *a);
void agent_lanes_start(struct agent *a);	/* when forward is there */
void agent_lanes_set_master(struct agent *a, bool up);
void agent_lanes_undo(void *arg);	/* when it was closed; says steps_undone() */

/* --- agent_ports.c ------------------------------------------------------- */
void agent_ports_init(struct agent *a);
void agent_ports_done(struct agent *a);
/* forward runs: takes over what the host agent before us was asked for, of a machine
 * that was adopted; else forgets it. */
void agent_ports_start(struct agent *a);
void agent_ports_stop(struct agent *a);		/* before forward goes: the machine ends */
/* For control_path; arg: the agent. */
json_t *agent_get_ports(void *arg);
json_t *agent_get_rules(void *arg);
int agent_post_ports(void *arg, const json_t *body, json_t **ret, struct error *err);
int agent_delete_ports(void *arg, const json_t *body, json_t **ret, struct error *err);
extern const struct control_stream agent_port_stream;

/* --- agent_vsock.c -------------------------------------------------------- */
bool agent_vsock_wanted(void *ctx);
void agent_vsock_run(void *ctx, struct steps *s);
void agent_vsock_undo(void *ctx, struct steps *s);
bool agent_ssh_over_vsock(const struct agent *a);
void agent_vsock_started(struct agent *a);	/* the driver did, it was not adopted */
void agent_vsock_forward_is_made(struct agent *a);
/* Why there is none and none will come; NULL: it is there, or may come. Static. */
const char *agent_vsock_missing(const struct agent *a);
void agent_vsock_link_is_ready(struct agent *a);
void agent_vsock_link_changed(struct agent *a);
void agent_vsock_driver_event(struct agent *a, enum driver_event event);
/* For as long as a snapshot takes: the device out and in again; nothing where there is
 * none. A failed "out" needs no "in". Neither is done before it returned. */
void agent_vsock_take_out(struct agent *a, driver_done_fn done, void *arg);
void agent_vsock_put_in(struct agent *a, driver_done_fn done, void *arg);
json_t *agent_vsock_info(const struct agent *a);	/* NULL: there is none */

/* --- agent_snapshot.c ----------------------------------------------------- */
/* For control_path; arg: the agent. */
void agent_get_snapshots(void *arg, const json_t *body, struct control_reply *reply);
void agent_create_snapshot(void *arg, const json_t *body, struct control_reply *reply);
void agent_apply_snapshot(void *arg, const json_t *body, struct control_reply *reply);
void agent_delete_snapshot(void *arg, const json_t *body, struct control_reply *reply);
void agent_snapshot_link_is_ready(struct agent *a);
void agent_snapshot_ssh_is_up(struct agent *a);	/* the master */
void agent_snapshot_ssh_is_lost(struct agent *a);
void agent_snapshot_ends(struct agent *a);	/* ssh or the link goes: nobody waits for them */

/* --- agent_guest.c ------------------------------------------------------- */
void agent_guest_init(struct agent *a);
void agent_guest_done(struct agent *a);	/* closes handles */
/* Something changed: link, progress, sshd, master. */
void agent_guest_changed(struct agent *a);
bool agent_hopeful(void *ctx);
bool agent_hopeful_link(void *ctx);
bool agent_has_probes(void *ctx);
void agent_up_run(void *ctx, struct steps *s);
void agent_ssh_run(void *ctx, struct steps *s);
void agent_ssh_abort(void *ctx, struct steps *s);
void agent_ssh_undo(void *ctx, struct steps *s);
void agent_provision_run(void *ctx, struct steps *s);
void agent_probes_run(void *ctx, struct steps *s);
void agent_forwards_run(void *ctx, struct steps *s);
void agent_wait_abort(void *ctx, struct steps *s);	/* of any step that waits */
