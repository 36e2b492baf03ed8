/* ports.bpf.c - runs in the guest's kernel: says that something about listening
 * sockets changed, and keeps how UDP sockets got their port
 *
 * A kick only says which protocol it is about: user space dumps the truth (ports.h),
 * so port 0 at listen(), SO_REUSEPORT, shared descriptors and other namespaces need
 * no care here. No BTF and no CO-RE: the raw tracepoint's arguments are plain numbers,
 * so this loads on kernels built without BTF (prototypes/ports.md), and a raw
 * tracepoint needs no tracefs. Needs Linux 5.8 (ring buffer), and 5.9 for
 * cgroup sock_release.
 */
#include <linux/bpf.h>
#include <linux/in.h>

#include <bpf/bpf_helpers.h>

#include "guestagent/ports_bpf_shared.h"

char LICENSE[] SEC("license") = "Apache-2.0";

enum { STATE_CLOSE = 7, STATE_LISTEN = 10 };	/* include/net/tcp_states.h */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, KICKS_BYTES);
} kicks SEC(".maps");

/* Socket cookie to enum udp_seen. User space adds sockets older than us. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, UDP_SEEN_MAX);
	__type(key, __u64);
	__type(value, __u32);
} udp_seen SEC(".maps");

static __always_inline void kick(__u64 what)
{
	/* A full buffer is fine: a wake-up is then under way, and so many kicks are
	 * taken for those of both protocols. */
	bpf_ringbuf_output(&kicks, &what, sizeof(what), 0);
}

/* args: struct sock *, int oldstate, int newstate. Each accepted child passes
 * through LISTEN -> SYN_RECV, which is no close. */
SEC("raw_tp/inet_sock_set_state")
int on_tcp_state(struct bpf_raw_tracepoint_args *ctx)
{
	int before = (int)ctx->args[1], now = (int)ctx->args[2];

	if (now == STATE_LISTEN || (before == STATE_LISTEN && now == STATE_CLOSE))
		kick(KICK_TCP);
	return 0;
}

static __always_inline int remember_bind(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol == IPPROTO_UDP) {
		__u64 cookie = bpf_get_socket_cookie(ctx);
		__u32 seen = ctx->user_port ? UDP_SEEN_PORT_CHOSEN : UDP_SEEN_PORT_KERNEL;

		bpf_map_update_elem(&udp_seen, &cookie, &seen, BPF_ANY);
	}
	return 1;	/* allow */
}

SEC("cgroup/bind4")
int on_bind4(struct bpf_sock_addr *ctx)
{
	return remember_bind(ctx);
}

SEC("cgroup/bind6")
int on_bind6(struct bpf_sock_addr *ctx)
{
	return remember_bind(ctx);
}

SEC("cgroup/post_bind4")
int on_bound4(struct bpf_sock *ctx)
{
	if (ctx->protocol == IPPROTO_UDP)
		kick(KICK_UDP);
	return 1;
}

SEC("cgroup/post_bind6")
int on_bound6(struct bpf_sock *ctx)
{
	if (ctx->protocol == IPPROTO_UDP)
		kick(KICK_UDP);
	return 1;
}

SEC("cgroup/sock_release")
int on_release(struct bpf_sock *ctx)
{
	__u64 cookie;

	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	cookie = bpf_get_socket_cookie(ctx);
	if (bpf_map_delete_elem(&udp_seen, &cookie) == 0)
		kick(KICK_UDP);
	return 1;
}
