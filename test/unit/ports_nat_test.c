/* Ports that only address translation publishes: rules written by the real
 * iptables-nft, iptables-legacy and nft into a network namespace, as container
 * engines and kube-proxy write them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "guestagent/nat_rules.h"
#include "guestagent/ports.h"
#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/netns.h"

enum { DEADLINE_MS = 10000 };

struct fixture {
	struct loop loop;
	struct ports *ports;
	uv_timer_t deadline;
	const char *expected;	/* what the loop runs for */
	bool timed_out, closed;
};

static struct fixture f;
static atomic_int failures;	/* as many readings of nf_tables still fail */

/* Instead of the C library's (-Wl,--wrap): nat_nft.c's is the one that blocks. */
int __wrap_socket(int domain, int type, int protocol);
int __real_socket(int domain, int type, int protocol);

int __wrap_socket(int domain, int type, int protocol)
{
	if (domain == AF_NETLINK && protocol == NETLINK_NETFILTER && !(type & SOCK_NONBLOCK) &&
	    failures > 0) {
		failures--;
		errno = ENOBUFS;
		return -1;
	}
	return __real_socket(domain, type, protocol);
}

static int compare_ports(const void *a, const void *b)
{
	const struct port *x = a, *y = b;

	if (x->proto != y->proto)
		return x->proto < y->proto ? -1 : 1;
	if (x->family != y->family)
		return x->family < y->family ? -1 : 1;
	return x->port < y->port ? -1 : x->port > y->port;
}

/* "tcp 0.0.0.0:80, udp [::]:53", by protocol, family, port. */
static char *list_text(const struct port_set *s)
{
	scoped_free struct port *sorted = xcalloc(s->len + 1, sizeof(*sorted));
	char *text = xstrdup("");

	if (s->len)
		memcpy(sorted, s->items, s->len * sizeof(*sorted));
	qsort(sorted, s->len, sizeof(*sorted), compare_ports);
	for (size_t i = 0; i < s->len; i++) {
		char ip[INET6_ADDRSTRLEN], *more;
		bool v6 = sorted[i].family == AF_INET6;

		port_ip(&sorted[i], ip);
		more = xasprintf("%s%s%s %s%s%s:%u", text, *text ? ", " : "", port_proto(&sorted[i]),
				 v6 ? "[" : "", ip, v6 ? "]" : "", sorted[i].port);
		free(text);
		text = more;
	}
	return text;
}

static bool as_expected(void)
{
	scoped_free char *text = list_text(ports_current(f.ports));

	return streq(text, f.expected);
}

static void on_changed(void *arg, const struct port_set *added, const struct port_set *removed)
{
	if (f.expected && as_expected())
		loop_stop(&f.loop);
}

static void on_deadline(uv_timer_t *t)
{
	f.timed_out = true;
	loop_stop(&f.loop);
}

static void on_ports_closed(void *arg)
{
	f.closed = true;
}

static void run_ms(unsigned ms)
{
	f.timed_out = false;
	uv_update_time(&f.loop.uv);
	uv_timer_start(&f.deadline, on_deadline, ms, 0);
	loop_run(&f.loop);
	uv_timer_stop(&f.deadline);
}

static void assert_list(const char *expected)
{
	scoped_free char *text = NULL;

	f.expected = expected;
	if (!as_expected())
		run_ms(DEADLINE_MS);
	f.expected = NULL;
	text = list_text(ports_current(f.ports));
	assert_string_equal(text, expected);
}

static void sh(const char *script)
{
	/* /run/xtables.lock is root's; nobody else is in this namespace anyway. */
	scoped_free char *all = xasprintf("set -e; export XTABLES_LOCKFILE=/dev/null\n%s", script);

	if (system(all) != 0)
		fail_msg("failed: %s", script);
}

/* --- rules as programs write them; $T is the iptables to use --------------- */

/* dockerd with "userland-proxy": false, two published ports. */
#define DOCKER                                                                              \
	"$T -t nat -N DOCKER\n"                                                             \
	"$T -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"                  \
	"$T -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n"     \
	"$T -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n"            \
	"$T -t nat -A DOCKER -i docker0 -j RETURN\n"                                        \
	"$T -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT"               \
	" --to-destination 172.17.0.2:80\n"                                                 \
	"$T -t nat -A DOCKER -d 127.0.0.1/32 ! -i docker0 -p udp -m udp --dport 5300 -j DNAT" \
	" --to-destination 172.17.0.3:53\n"                                                 \
	"$T -t nat -A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80" \
	" -j MASQUERADE\n"
#define DOCKER_PORTS "tcp 0.0.0.0:8080, udp 127.0.0.1:5300"

/* CNI's portmap plugin: nerdctl run -p 8088:80 -p 9000-9001:9000-9001, a pod's
 * hostPort, k3s' service load balancer. */
#define CNI                                                                                 \
	"$T -t nat -N CNI-HOSTPORT-SETMARK\n"                                               \
	"$T -t nat -A CNI-HOSTPORT-SETMARK -m comment --comment 'CNI portfwd masquerade mark'" \
	" -j MARK --set-xmark 0x2000/0x2000\n"                                              \
	"$T -t nat -N CNI-HOSTPORT-DNAT\n"                                                  \
	"$T -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n"       \
	"$T -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n"           \
	"$T -t nat -N CNI-DN-6b9a12\n"                                                      \
	"$T -t nat -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: \"bridge\"'"  \
	" -m multiport --dports 8088,9000:9001 -j CNI-DN-6b9a12\n"                          \
	"$T -t nat -A CNI-DN-6b9a12 -s 10.4.0.0/24 -p tcp -m tcp --dport 8088"              \
	" -j CNI-HOSTPORT-SETMARK\n"                                                        \
	"$T -t nat -A CNI-DN-6b9a12 -s 127.0.0.1/32 -p tcp -m tcp --dport 8088"             \
	" -j CNI-HOSTPORT-SETMARK\n"                                                        \
	"$T -t nat -A CNI-DN-6b9a12 -p tcp -m tcp --dport 8088 -j DNAT --to-destination"    \
	" 10.4.0.2:80\n"                                                                    \
	"$T -t nat -A CNI-DN-6b9a12 -p tcp -m tcp --dport 9000 -j DNAT --to-destination"    \
	" 10.4.0.2:9000\n"                                                                  \
	"$T -t nat -A CNI-DN-6b9a12 -p tcp -m tcp --dport 9001 -j DNAT --to-destination"    \
	" 10.4.0.2:9001\n"
#define CNI_PORTS "tcp 0.0.0.0:8088, tcp 0.0.0.0:9000, tcp 0.0.0.0:9001"

/* kube-proxy, iptables mode: a NodePort with two endpoints, a LoadBalancer on an
 * address that is not this node's, one on this node's, a cluster address, and a
 * NodePort without endpoints. */
#define KUBE                                                                                \
	"for c in KUBE-SERVICES KUBE-NODEPORTS KUBE-MARK-MASQ KUBE-EXT-A KUBE-SVC-A KUBE-SEP-1"  \
	" KUBE-SEP-2 KUBE-EXT-B KUBE-SVC-B KUBE-EXT-C KUBE-SVC-C; do $T -t nat -N $c; done\n" \
	"$T -t nat -A PREROUTING -m comment --comment 'kubernetes service portals'"         \
	" -j KUBE-SERVICES\n"                                                               \
	"$T -t nat -A OUTPUT -m comment --comment 'kubernetes service portals'"             \
	" -j KUBE-SERVICES\n"                                                               \
	"$T -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n"                            \
	"$T -t nat -A KUBE-SERVICES -d 10.43.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A\n" \
	"$T -t nat -A KUBE-SERVICES -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-A\n" \
	"$T -t nat -A KUBE-SERVICES -d 192.168.5.15/32 -p tcp -m tcp --dport 81 -j KUBE-EXT-B\n" \
	"$T -t nat -A KUBE-SERVICES -m comment --comment 'must be last' -m addrtype"        \
	" --dst-type LOCAL -j KUBE-NODEPORTS\n"                                             \
	"$T -t nat -A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30080 -j KUBE-EXT-A\n" \
	"$T -t nat -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-A\n"           \
	"$T -t nat -A KUBE-NODEPORTS -p udp -m udp --dport 30053 -j KUBE-EXT-B\n"           \
	"$T -t nat -A KUBE-NODEPORTS -p tcp -m tcp --dport 30099 -j KUBE-EXT-C\n"           \
	"$T -t nat -A KUBE-EXT-A -s 10.42.0.0/16 -j KUBE-SVC-A\n"                           \
	"$T -t nat -A KUBE-EXT-A -j KUBE-MARK-MASQ\n"                                       \
	"$T -t nat -A KUBE-EXT-A -j KUBE-SVC-A\n"                                           \
	"$T -t nat -A KUBE-EXT-B -j KUBE-SVC-B\n"                                           \
	"$T -t nat -A KUBE-EXT-C -j KUBE-SVC-C\n"                                           \
	"$T -t nat -A KUBE-SVC-A ! -s 10.42.0.0/16 -d 10.43.0.1/32 -p tcp -m tcp --dport 443" \
	" -j KUBE-MARK-MASQ\n"                                                              \
	"$T -t nat -A KUBE-SVC-A -m statistic --mode random --probability 0.5 -j KUBE-SEP-1\n" \
	"$T -t nat -A KUBE-SVC-A -j KUBE-SEP-2\n"                                           \
	"$T -t nat -A KUBE-SEP-1 -s 10.42.0.5/32 -j KUBE-MARK-MASQ\n"                       \
	"$T -t nat -A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.42.0.5:8080\n"   \
	"$T -t nat -A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.42.0.6:8080\n"   \
	"$T -t nat -A KUBE-SVC-B -p tcp -m tcp -j DNAT --to-destination 10.42.0.7:81\n"     \
	"$T -t nat -A KUBE-SVC-B -p udp -m udp -j DNAT --to-destination 10.42.0.7:53\n"
#define KUBE_PORTS "tcp 0.0.0.0:80, tcp 0.0.0.0:81, tcp 0.0.0.0:30080, udp 0.0.0.0:30053"

/* What publishes nothing: a proxy for everything that goes out, a DNS redirect
 * on another address, traffic that comes from containers, other protocols. */
#define NOTHING                                                                             \
	"$T -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001\n"                         \
	"$T -t nat -A OUTPUT -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.9.9.9:3128\n" \
	"$T -t nat -A PREROUTING -d 192.168.5.3/32 -p udp -m udp --dport 53 -j DNAT"        \
	" --to-destination 192.168.5.2:40000\n"                                             \
	"$T -t nat -A PREROUTING -s 10.4.0.0/24 -p tcp -m tcp --dport 90 -j DNAT"           \
	" --to-destination 10.9.9.9:90\n"                                                   \
	"$T -t nat -A PREROUTING -i cni0 -p tcp -m tcp --dport 91 -j REDIRECT --to-ports 99\n" \
	"$T -t nat -A PREROUTING -p tcp -m tcp --sport 92 -j REDIRECT --to-ports 99\n"      \
	"$T -t nat -A PREROUTING -p icmp -j DNAT --to-destination 10.9.9.9\n"               \
	"$T -t nat -A PREROUTING -p tcp -m tcp --dport 1:60000 -j REDIRECT --to-ports 99\n"

/* What somebody writes by hand. */
#define BY_HAND                                                                             \
	"$T -t nat -A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080\n"    \
	"$T -t nat -A PREROUTING -i uplink -p tcp -m tcp --dport 81 -j DNAT"                \
	" --to-destination 10.9.9.9\n"                                                      \
	"$T -t nat -A PREROUTING -d 192.168.5.15/32 -p udp -m multiport --dports 82,84:85"   \
	" -j DNAT --to-destination 10.9.9.9\n"
#define BY_HAND_PORTS "tcp 0.0.0.0:80, tcp 0.0.0.0:81, udp 192.168.5.15:82, udp 192.168.5.15:84, " \
		      "udp 192.168.5.15:85"

#define V6                                                                                  \
	"$T6 -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 8080"  \
	" -j DNAT --to-destination [fd00::2]:80\n"                                          \
	"$T6 -t nat -A PREROUTING -d ::1/128 -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353\n" \
	"$T6 -t nat -A PREROUTING -d fd00::77/128 -p tcp -m tcp --dport 99 -j DNAT"         \
	" --to-destination [fd00::2]:80\n"
#define V6_PORTS "tcp [::]:8080, udp [::1]:53"

/* kube-proxy, nftables mode. */
static const char kube_nft[] =
	"nft -f - <<'EOF'\n"
	"table ip kube-proxy {\n"
	" set nodeport-ips { type ipv4_addr; elements = { 192.168.5.15 } }\n"
	" map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }\n"
	" map service-nodeports { type inet_proto . inet_service : verdict; }\n"
	" chain mark-for-masquerade { meta mark set meta mark or 0x4000; }\n"
	" chain endpoint-1 { ip saddr 10.42.0.5 jump mark-for-masquerade\n"
	"  meta l4proto tcp dnat to 10.42.0.5:8080; }\n"
	" chain endpoint-2 { meta l4proto tcp dnat to 10.42.0.6:8080; }\n"
	" chain service-A { ip daddr 10.43.0.1 tcp dport 443 ip saddr != 10.42.0.0/16 "
	"jump mark-for-masquerade\n"
	"  numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }; }\n"
	" chain external-A { jump mark-for-masquerade; goto service-A; }\n"
	" chain services { ip daddr . meta l4proto . th dport vmap @service-ips\n"
	"  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports; }\n"
	" chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }\n"
	" chain nat-output { type nat hook output priority -100; jump services; }\n"
	"}\n"
	"add element ip kube-proxy service-ips { 10.43.0.1 . tcp . 443 : goto service-A, "
	"203.0.113.7 . tcp . 80 : goto external-A }\n"
	"add element ip kube-proxy service-nodeports { tcp . 30080 : goto external-A }\n"
	"EOF\n";

/* The forms nftables has for ports: sets, intervals, maps, verdict maps. */
static const char by_hand_nft[] =
	"nft -f - <<'EOF'\n"
	"table inet web {\n"
	" map to { type inet_service : ipv4_addr . inet_service; elements = { 85 : 10.9.9.9 . 80 } }\n"
	" chain more { tcp dport 86 dnat ip to 10.9.9.9:80; }\n"
	" chain in { type nat hook prerouting priority dstnat;\n"
	"  iifname \"uplink\" tcp dport { 80, 8000-8002 } dnat ip to 10.9.9.9\n"
	"  fib daddr type local udp dport 83-84 redirect to :5353\n"
	"  ip daddr 192.168.5.0/24 dnat ip to tcp dport map @to\n"
	"  tcp dport vmap { 86 : jump more, 87 : drop }\n"
	"  ip6 daddr ::1 tcp dport 88 redirect to :8088\n"
	"  ip daddr != 127.0.0.1 tcp dport != 22 redirect to :99\n"
	" }\n"
	"}\n"
	"EOF\n";
#define BY_HAND_NFT_PORTS                                                                   \
	"tcp 0.0.0.0:80, tcp 192.168.5.15:85, tcp 0.0.0.0:86, tcp 0.0.0.0:8000, "           \
	"tcp 0.0.0.0:8001, tcp 0.0.0.0:8002, tcp [::1]:88, udp 0.0.0.0:83, udp 0.0.0.0:84, " \
	"udp [::]:83, udp [::]:84"

#define NFT    "T=iptables-nft T6=ip6tables-nft\n"
#define LEGACY "T=iptables-legacy T6=ip6tables-legacy\n"

static const struct {
	const char *name, *script, *expected;
} cases[] = {
	{ "docker, nft", NFT DOCKER, DOCKER_PORTS },
	{ "CNI portmap, nft", NFT CNI, CNI_PORTS },
	{ "kube-proxy iptables, nft", NFT KUBE, KUBE_PORTS },
	{ "kube-proxy nftables", kube_nft, "tcp 0.0.0.0:80, tcp 0.0.0.0:30080" },
	{ "by hand, iptables-nft", NFT BY_HAND, BY_HAND_PORTS },
	{ "by hand, nft", by_hand_nft, BY_HAND_NFT_PORTS },
	{ "IPv6, nft", NFT V6, V6_PORTS },
	/* from here on the legacy table is there */
	{ "docker, legacy", LEGACY DOCKER, DOCKER_PORTS },
	{ "CNI portmap, legacy", LEGACY CNI, CNI_PORTS },
	{ "kube-proxy iptables, legacy", LEGACY KUBE, KUBE_PORTS },
	{ "by hand, legacy", LEGACY BY_HAND, BY_HAND_PORTS },
	{ "IPv6, legacy", LEGACY V6, V6_PORTS },
	{ "both at once", NFT CNI LEGACY V6, CNI_PORTS ", " V6_PORTS },
};

static const char flush[] =
	"nft flush ruleset\n"
	"for t in iptables ip6tables; do\n"
	"  for n in $(cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null); do\n"
	"    [ $n != nat ] || { $t-legacy -t nat -F; $t-legacy -t nat -X; }\n"
	"  done\n"
	"done\n";

/* Only the machine's root may read which legacy tables there are, not that of a
 * user namespace. The guest agent is the machine's root. */
static bool legacy_readable(void)
{
	if (access("/proc/net/ip_tables_names", R_OK) == 0)
		return true;
	print_message("not root: without iptables-legacy\n");
	return false;
}

static void test_rules_as_written(void **state)
{
	bool with_legacy = legacy_readable();

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t start_ms;

		if (strstr(cases[i].script, "legacy") && !with_legacy)
			continue;
		print_message("%s\n", cases[i].name);
		sh(cases[i].script);
		/* Without events legacy tables would be found by the safety rescan
		 * only, which is too late for this test. */
		ports_rescan(f.ports);
		start_ms = clock_mono_ms();
		assert_list(cases[i].expected);
		print_message("  seen after %d ms\n", (int)(clock_mono_ms() - start_ms));
		sh(flush);
		assert_list("");
	}
}

static void test_what_publishes_nothing(void **state)
{
	sh(NFT NOTHING "$T -t nat -A PREROUTING -p tcp --dport 7 -j REDIRECT --to-ports 8\n");
	assert_list("tcp 0.0.0.0:7");
	sh(flush);
	assert_list("");
	if (!legacy_readable())
		return;
	sh(LEGACY NOTHING "$T -t nat -A PREROUTING -p tcp --dport 7 -j REDIRECT --to-ports 8\n");
	ports_rescan(f.ports);
	assert_list("tcp 0.0.0.0:7");
	sh(flush);
	assert_list("");
}

static void dial_text(int proto, const char *text, char *ret, size_t size)
{
	struct dial d;
	size_t at = 0;

	assert_int_equal(dial_parse(text, &d), 0);
	ports_dial(f.ports, proto, &d);
	ret[0] = 0;
	for (unsigned i = 0; i < d.len; i++) {
		char ip[INET6_ADDRSTRLEN];
		bool v4 = d.addrs[i].sa.sa_family == AF_INET;

		inet_ntop(d.addrs[i].sa.sa_family,
			  v4 ? (void *)&d.addrs[i].in.sin_addr : &d.addrs[i].in6.sin6_addr, ip,
			  sizeof(ip));
		at += (size_t)snprintf(ret + at, size - at, "%s%s:%u", i ? " " : "", ip,
				       ntohs(v4 ? d.addrs[i].in.sin_port : d.addrs[i].in6.sin6_port));
	}
}

static void assert_dialed(int proto, const char *asked, const char *dialed)
{
	char text[256];

	dial_text(proto, asked, text, sizeof(text));
	assert_string_equal(text, dialed);
}

static int listen_at(const char *ip, uint16_t port)
{
	union dial_addr a = { 0 };
	bool v4 = !strchr(ip, ':');
	int fd = socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	a.sa.sa_family = v4 ? AF_INET : AF_INET6;
	*(v4 ? &a.in.sin_port : &a.in6.sin6_port) = htons(port);
	inet_pton(a.sa.sa_family, ip, v4 ? (void *)&a.in.sin_addr : &a.in6.sin6_addr);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(fd, &a.sa, v4 ? sizeof(a.in) : sizeof(a.in6)), 0);
	assert_int_equal(listen(fd, 1), 0);
	return fd;
}

/* One port, one place in the list, whoever serves it; the list keeps it until
 * both are gone. */
static void test_rule_beside_a_socket(void **state)
{
	int fd = listen_at("0.0.0.0", 8080);

	sh(NFT DOCKER);
	assert_list(DOCKER_PORTS);
	close(fd);
	f.expected = "udp 127.0.0.1:5300";
	run_ms(300);
	f.expected = NULL;
	assert_true(f.timed_out);
	assert_list(DOCKER_PORTS);
	sh(flush);
	assert_list("");
}

static bool list_has(const char *port)
{
	scoped_free char *text = list_text(ports_current(f.ports));

	return strstr(text, port) != NULL;
}

/* A socket that a rule's port leads to as well is asked first: only one on the address
 * that is dialed, and only where the kernel does not rewrite what the guest sends. */
static void test_what_to_dial_beside_a_socket(void **state)
{
	static const struct {
		const char *ip;
		uint16_t port;
		const char *asked, *dialed;
	} rows[] = {
		{ "0.0.0.0", 81, "0.0.0.0:81", "127.0.0.1:81 10.9.9.9:81" },
		{ "127.0.0.1", 81, "0.0.0.0:81", "127.0.0.1:81 10.9.9.9:81" },
		{ "::", 81, "0.0.0.0:81", "127.0.0.1:81 10.9.9.9:81" },
		{ "127.0.0.53", 81, "0.0.0.0:81", "10.9.9.9:81 127.0.0.1:81" },	/* as systemd-resolved */
		{ "192.168.5.15", 81, "0.0.0.0:81", "10.9.9.9:81 127.0.0.1:81" },
		{ "::1", 81, "0.0.0.0:81", "10.9.9.9:81 127.0.0.1:81" },
		{ "0.0.0.0", 82, "0.0.0.0:81", "10.9.9.9:81 127.0.0.1:81" },
		{ "0.0.0.0", 8088, "0.0.0.0:8088",
		  "192.168.5.15:8088 10.4.0.2:80 127.0.0.1:8088" },
		{ "127.0.0.1", 8088, "0.0.0.0:8088",
		  "192.168.5.15:8088 10.4.0.2:80 127.0.0.1:8088" },
		{ "127.0.0.53", 8088, "0.0.0.0:8088",
		  "192.168.5.15:8088 10.4.0.2:80 127.0.0.1:8088" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint64_t end_ms = clock_mono_ms() + DEADLINE_MS;
		int fd = listen_at(rows[i].ip, rows[i].port);

		print_message("%s port %u\n", rows[i].ip, rows[i].port);
		sh(NFT CNI BY_HAND);
		while (!list_has("udp 192.168.5.15:85")) {	/* the last one of the rules */
			assert_true(clock_mono_ms() < end_ms);
			run_ms(20);
		}
		assert_dialed(IPPROTO_TCP, rows[i].asked, rows[i].dialed);
		close(fd);
		sh(flush);
		assert_list("");
	}
}

/* The list that an agent begins with, without running the loop, and its end in order. */
static void assert_begins_with(const char *expected, const char *udp_keep)
{
	struct ports_options opts = { .no_bpf = true, .udp_keep = udp_keep };
	scoped_free char *text = NULL;
	struct error err = ERROR_NONE;
	struct ports *p;

	if (ports_new(&f.loop, &opts, on_changed, NULL, &p, &err) < 0)
		fail_msg("%s", err.msg);
	text = list_text(ports_current(p));
	assert_string_equal(text, expected);
	f.closed = false;
	ports_close(p, on_ports_closed, NULL);
	while (!f.closed)
		uv_run(&f.loop.uv, UV_RUN_ONCE);
}

/* A host that waits for an agent that was killed closes what the first list lacks. The
 * first agent of a boot does not keep boot waiting for the tables. */
static void test_next_agent_begins_with_rules(void **state)
{
	char dir[] = "/tmp/lima-nat-XXXXXX";
	struct error err = ERROR_NONE;
	scoped_free char *path = NULL;

	assert_non_null(mkdtemp(dir));
	path = xasprintf("%s/udp-servers", dir);
	sh(NFT DOCKER);
	assert_list(DOCKER_PORTS);
	assert_begins_with("", path);
	assert_begins_with(DOCKER_PORTS, path);
	assert_begins_with("", NULL);
	sh(flush);
	assert_list("");
	assert_begins_with("", path);
	assert_int_equal(path_remove_tree(dir, &err), 0);
}

/* Readings that fail at an agent's start are made again before the list is told, but
 * not for long. */
static void test_next_agent_begins_with_failures(void **state)
{
	char dir[] = "/tmp/lima-nat-XXXXXX";
	struct error err = ERROR_NONE;
	scoped_free char *path = NULL;

	assert_non_null(mkdtemp(dir));
	path = xasprintf("%s/udp-servers", dir);
	assert_begins_with("", path);
	sh(NFT DOCKER);
	assert_list(DOCKER_PORTS);
	failures = 3;
	assert_begins_with(DOCKER_PORTS, path);
	failures = INT_MAX;
	assert_begins_with("", path);
	failures = 0;
	sh(flush);
	assert_list("");
	assert_int_equal(path_remove_tree(dir, &err), 0);
}

/* What failed is made up for soon, not by the rescan of every 30 s. No legacy table may be
 * there yet: those are read all the time. */
static void test_failed_reading_is_made_again(void **state)
{
	failures = 5;
	sh("nft 'add table ip again'\n"
	   "nft 'add chain ip again in { type nat hook prerouting priority dstnat; }'\n"
	   "nft add rule ip again in tcp dport 7777 redirect to :99\n");
	assert_list("tcp 0.0.0.0:7777");
	assert_int_equal(failures, 0);
	sh(flush);
	assert_list("");
}

static void test_what_to_dial(void **state)
{
	static const struct {
		int proto;
		const char *asked, *dialed;
	} rows[] = {
		/* left out of the rules for loopback: by our own address */
		{ IPPROTO_TCP, "0.0.0.0:8080", "192.168.5.15:8080 172.17.0.2:80 127.0.0.1:8080" },
		{ IPPROTO_TCP, "127.0.0.1:8080", "192.168.5.15:8080 172.17.0.2:80 127.0.0.1:8080" },
		{ IPPROTO_UDP, "127.0.0.1:5300", "127.0.0.1:5300" },
		/* for what comes in from outside only: where the rule leads */
		{ IPPROTO_TCP, "0.0.0.0:80", "192.168.5.15:8080 127.0.0.1:80" },
		{ IPPROTO_TCP, "0.0.0.0:81", "10.9.9.9:81 127.0.0.1:81" },
		{ IPPROTO_UDP, "192.168.5.15:84", "10.9.9.9:84 192.168.5.15:84" },
		/* nothing to do with any rule */
		{ IPPROTO_UDP, "0.0.0.0:8080", "127.0.0.1:8080" },
		{ IPPROTO_TCP, "0.0.0.0:22", "127.0.0.1:22" },
		{ IPPROTO_TCP, "[::]:8080", "::1:8080 127.0.0.1:8080" },
	};
	char text[256];

	sh(NFT DOCKER BY_HAND);
	assert_list("tcp 0.0.0.0:80, tcp 0.0.0.0:81, tcp 0.0.0.0:8080, udp 192.168.5.15:82, "
		    "udp 192.168.5.15:84, udp 192.168.5.15:85, udp 127.0.0.1:5300");
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		assert_dialed(rows[i].proto, rows[i].asked, rows[i].dialed);
	sh(flush);
	assert_list("");
	sh(kube_nft);
	assert_list("tcp 0.0.0.0:80, tcp 0.0.0.0:30080");
	dial_text(IPPROTO_TCP, "0.0.0.0:80", text, sizeof(text));
	/* either endpoint: a map has no order */
	assert_int_equal(strncmp(text, "203.0.113.7:80 10.42.0.", 23), 0);
	dial_text(IPPROTO_TCP, "0.0.0.0:30080", text, sizeof(text));
	assert_int_equal(strncmp(text, "192.168.5.15:30080 10.42.0.", 27), 0);
	sh(flush);
	assert_list("");
}

/* A container engine's burst: many transactions, the last state counts. */
static void test_many_changes(void **state)
{
	sh("nft 'add table ip many'\n"
	   "nft 'add chain ip many in { type nat hook prerouting priority dstnat; }'\n"
	   "for i in $(seq 1 60); do nft add rule ip many in tcp dport $((7000 + i)) redirect to :99\n"
	   "done\n"
	   "for i in $(seq 1 30); do nft delete rule ip many in handle $((1 + $i)); done\n"
	   "nft flush chain ip many in\n"
	   "nft add rule ip many in tcp dport 7777 redirect to :99\n");
	assert_list("tcp 0.0.0.0:7777");
	sh(flush);
	assert_list("");
}

/* More of everything than is taken: bounded, and it ends. */
static void test_rules_bounded(void **state)
{
	struct nat_rules *r = nat_rules_new(AF_INET);
	struct nat_env env = { 0 };
	struct nat_ports ports = { 0 };
	struct nat_op dnat = { .kind = NAT_OP_DNAT }, op = { .kind = NAT_OP_PROTO };
	uint64_t start_ms = clock_mono_ms();
	char name[32];

	/* Each chain jumps to the next one twice: 2^16 ways. */
	for (unsigned i = 0; i < 40; i++) {
		uint32_t next;

		snprintf(name, sizeof(name), "c%u", i + 1);
		next = nat_rules_chain(r, name);
		snprintf(name, sizeof(name), "c%u", i);
		for (int twice = 0; twice < 2; twice++) {
			nat_rules_begin(r, nat_rules_chain(r, name));
			nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_JUMP, .chain = next });
		}
	}
	nat_rules_hook(r, nat_rules_chain(r, "c0"), NAT_HOOK_PREROUTING);
	nat_rules_hook(r, nat_rules_chain(r, "loop"), NAT_HOOK_PREROUTING);
	nat_rules_begin(r, nat_rules_chain(r, "loop"));
	nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_JUMP, .chain = nat_rules_chain(r, "loop") });
	nat_rules_hook(r, nat_rules_chain(r, "wide"), NAT_HOOK_PREROUTING);
	for (unsigned i = 0; i < NAT_RULES_MAX + 10; i++) {
		uint16_t low = (uint16_t)(1 + i % 64 * NAT_RANGE_MAX);

		nat_rules_begin(r, nat_rules_chain(r, "wide"));
		op = (struct nat_op){ .kind = NAT_OP_PORTS, .ports = { low, low } };
		op.ports.high = (uint16_t)MIN(low + NAT_RANGE_MAX - 1, 65535);
		nat_rules_op(r, &op);
		if (i < 64)
			nat_rules_op(r, &dnat);
	}
	assert_true(nat_rules_full(r));
	nat_rules_walk(r, &env, &ports);
	assert_true(ports.full);
	assert_int_equal(ports.len, NAT_PORTS_MAX);
	assert_true(clock_mono_ms() - start_ms < DEADLINE_MS);
	nat_ports_done(&ports);
	nat_rules_free(r);
}

static const char *chain_name(char *buf, size_t size, unsigned i)
{
	snprintf(buf, size, "c%u", i);
	return buf;
}

/* A chain that 2^NAT_DEPTH_MAX ways lead to. */
static uint32_t end_of_many_ways(struct nat_rules *r)
{
	char buf[32];

	nat_rules_hook(r, nat_rules_chain(r, "c0"), NAT_HOOK_PREROUTING);
	for (unsigned i = 0; i < 2 * NAT_DEPTH_MAX; i++) {
		uint32_t next = nat_rules_chain(r, chain_name(buf, sizeof(buf), i / 2 + 1));

		nat_rules_begin(r, nat_rules_chain(r, chain_name(buf, sizeof(buf), i / 2)));
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_JUMP, .chain = next });
	}
	return nat_rules_chain(r, chain_name(buf, sizeof(buf), NAT_DEPTH_MAX));
}

static void fill_with_empty_rules(struct nat_rules *r, uint32_t chain)
{
	for (unsigned i = 0; i < NAT_RULES_MAX - 2 * NAT_DEPTH_MAX; i++)
		nat_rules_begin(r, chain);
}

/* Each for an address that is compared with all of ours. */
static void fill_with_addresses(struct nat_rules *r, uint32_t chain)
{
	const struct nat_op to = { .kind = NAT_OP_TO,
				   .to = { .family = AF_INET, .low = { 10 }, .high = { 10 } } };
	const struct nat_op ports = { .kind = NAT_OP_PORTS, .ports = { 80, 80 } };

	for (unsigned i = 0; i < 1000; i++) {
		nat_rules_begin(r, chain);
		nat_rules_op(r, &to);
		nat_rules_op(r, &ports);
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_DNAT });
	}
}

static void fill_with_ranges(struct nat_rules *r, uint32_t chain)
{
	struct nat_op ports = { .kind = NAT_OP_PORTS };

	for (unsigned i = 1; i < 60; i++) {
		ports.ports.low = (uint16_t)(i * NAT_RANGE_MAX);
		ports.ports.high = (uint16_t)(ports.ports.low + NAT_RANGE_MAX - 1);
		nat_rules_begin(r, chain);
		nat_rules_op(r, &ports);
		nat_rules_op(r, &(struct nat_op){ .kind = NAT_OP_DNAT });
	}
}

/* What the ways lead to costs as much as the ways: a walk ends in its time wherever the
 * rules are, and so do all walks of one reading together. */
static void test_walk_bounded(void **state)
{
	static void (*const fills[])(struct nat_rules *r, uint32_t chain) = {
		fill_with_empty_rules, fill_with_addresses, fill_with_ranges,
	};
	struct nat_env env = { .locals = xcalloc(1024, sizeof(*env.locals)), .locals_len = 1024 };

	for (size_t i = 0; i < env.locals_len; i++)
		env.locals[i] = (struct port){ .family = AF_INET, .addr = { 192, 168, i >> 8, i & 255 } };
	for (size_t i = 0; i < ARRAY_SIZE(fills); i++) {
		struct nat_rules *r = nat_rules_new(AF_INET);
		struct nat_ports ports = { 0 };
		uint64_t start_ms = clock_mono_ms();

		fills[i](r, end_of_many_ways(r));
		for (int tables = 0; tables < 64; tables++)
			nat_rules_walk(r, &env, &ports);
		assert_true(ports.full);
		assert_false(nat_rules_full(r));
		assert_true(clock_mono_ms() - start_ms < DEADLINE_MS);
		nat_ports_done(&ports);
		nat_rules_free(r);
	}
	free(env.locals);
}

static int start(void **state)
{
	static const struct ports_options opts = { .no_bpf = true };
	struct error err = ERROR_NONE;

	if (!netns_enter())
		return -1;
	sh("ip link add uplink type veth peer name far && ip addr add 192.168.5.15/24 dev uplink\n"
	   "ip link set far up && ip link set uplink up && ip route add default via 192.168.5.2\n");
	loop_init(&f.loop, &err);
	uv_timer_init(&f.loop.uv, &f.deadline);
	if (ports_new(&f.loop, &opts, on_changed, NULL, &f.ports, &err) < 0)
		return -1;
	assert_list("");
	return 0;
}

static int stop(void **state)
{
	ports_close(f.ports, on_ports_closed, NULL);
	uv_close((uv_handle_t *)&f.deadline, NULL);
	loop_run(&f.loop);
	assert_true(f.closed);
	assert_int_equal(loop_done(&f.loop), 0);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_failed_reading_is_made_again),
		cmocka_unit_test(test_rules_as_written),
		cmocka_unit_test(test_what_publishes_nothing),
		cmocka_unit_test(test_rule_beside_a_socket),
		cmocka_unit_test(test_what_to_dial_beside_a_socket),
		cmocka_unit_test(test_next_agent_begins_with_rules),
		cmocka_unit_test(test_next_agent_begins_with_failures),
		cmocka_unit_test(test_what_to_dial),
		cmocka_unit_test(test_many_changes),
		cmocka_unit_test(test_rules_bounded),
		cmocka_unit_test(test_walk_bounded),
	};

	return cmocka_run_group_tests_name("ports_nat", tests, start, stop);
}
