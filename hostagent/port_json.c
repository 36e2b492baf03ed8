#include "hostagent/port_json.h"

#include <arpa/inet.h>
#include <assert.h>
#include <time.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

enum { TEXT_MAX_BYTES = 1024 };	/* as in an event: guests have a say in addresses and errors */

static void set_text(json_t *o, const char *key, const char *s)
{
	scoped_free char *clean = log_escape(s ? s : "", TEXT_MAX_BYTES);

	json_object_set_new(o, key, json_string(clean));
}

static void set_since(json_t *o, uint64_t since_ms, uint64_t now_ms)
{
	char text[sizeof("2026-01-02T15:04:05Z")];
	struct timespec now;
	struct tm tm;
	time_t at;

	clock_gettime(CLOCK_REALTIME, &now);
	/* rounded: the two clocks tick apart, and the same moment is told again and again */
	at = (time_t)((now.tv_sec * 1000 + now.tv_nsec / 1000000 -
		       (int64_t)(now_ms - MIN(since_ms, now_ms)) + 500) / 1000);
	if (!since_ms || !gmtime_r(&at, &tm))
		return;
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	json_object_set_new(o, "since", json_string(text));
}

json_t *port_json_key(const char *protocol, const char *guest_addr, const char *host_addr)
{
	json_t *o = json_object();

	set_text(o, "protocol", protocol);
	set_text(o, "guestAddr", guest_addr);
	set_text(o, "hostAddr", host_addr);
	return o;
}

json_t *port_json_row(const struct forward_row *row, uint64_t now_ms)
{
	const struct {
		const char *key;
		uint64_t value;
	} numbers[] = {
		{ "connectionsTotal", row->connections_total },
		{ "connectionsNow", row->connections_now },
		{ "bytesIn", row->bytes_in },
		{ "bytesOut", row->bytes_out },
		{ "errorsTotal", row->refused + row->resets + row->timeouts },
		{ "refused", row->refused },
		{ "resets", row->resets },
		{ "timeouts", row->timeouts },
		{ "connectLastMicros", row->connect_last_us },
		{ "connectP50Micros", row->connect_p50_us },
		{ "connectP99Micros", row->connect_p99_us },
	};
	json_t *o = port_json_key(row->protocol, row->guest_addr, row->host_addr);

	set_text(o, "state", row->state);
	set_text(o, "error", row->error);
	set_text(o, "lane", row->lane);
	set_text(o, "origin", row->origin);
	set_text(o, "rule", row->rule);
	json_object_set_new(o, "ruleId", json_integer(row->rule_id));
	json_object_set_new(o, "static", json_boolean(row->is_static));
	json_object_set_new(o, "reverse", json_boolean(row->reverse));
	set_since(o, row->since_ms, now_ms);
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		json_object_set_new(o, numbers[i].key, json_integer((json_int_t)numbers[i].value));
	return o;
}

static void set_ip(json_t *o, const char *key, const struct in6_addr *ip)
{
	char text[INET6_ADDRSTRLEN];
	bool v4 = IN6_IS_ADDR_V4MAPPED(ip);

	inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? &ip->s6_addr[12] : (const void *)ip, text, sizeof(text));
	json_object_set_new(o, key, json_string(text));
}

static void set_range(json_t *o, const char *key, const uint16_t port[2])
{
	json_object_set_new(o, key, json_pack("[i, i]", (int)port[0], (int)port[1]));
}

static void set_guest(json_t *o, const struct config_port_forward *r)
{
	if (r->guest_socket) {
		set_text(o, "guestSocket", r->guest_socket);
		return;
	}
	set_ip(o, "guestIP", &r->guest_ip);
	json_object_set_new(o, "guestIPMustBeZero", json_boolean(r->guest_ip_must_be_zero));
	set_range(o, "guestPortRange", r->guest_port);
}

static void set_host(json_t *o, const struct config_port_forward *r)
{
	if (r->host_socket) {
		set_text(o, "hostSocket", r->host_socket);
		return;
	}
	set_ip(o, "hostIP", &r->host_ip);
	set_range(o, "hostPortRange", r->host_port);
	json_object_set_new(o, "hostPortAuto", json_boolean(r->host_port_auto));
}

json_t *port_json_rule(const struct forward_rule_info *info)
{
	static const char *const protos[] = { [L4_ANY] = "any", [L4_TCP] = "tcp", [L4_UDP] = "udp" };
	static const char *const lanes[] = {
		[CONFIG_LANE_AUTO] = "auto", [CONFIG_LANE_VSOCK] = "vsock", [CONFIG_LANE_GRPC] = "grpc",
		[CONFIG_LANE_SSH] = "ssh", [CONFIG_LANE_DIRECT] = "direct",
	};
	const struct config_port_forward *r = info->rule;
	json_t *o = json_object();

	json_object_set_new(o, "id", json_integer(info->id));
	set_text(o, "origin", info->origin);
	set_text(o, "name", info->name);
	set_guest(o, r);
	set_host(o, r);
	json_object_set_new(o, "proto", json_string(protos[r->proto]));
	json_object_set_new(o, "reverse", json_boolean(r->reverse));
	json_object_set_new(o, "ignore", json_boolean(r->ignore));
	json_object_set_new(o, "static", json_boolean(r->is_static));
	json_object_set_new(o, "lane", json_string(lanes[r->lane]));
	return o;
}
