#include "proto/guest_client.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "proto/guest_client_impl.h"
#include "proto/message.h"
#include "proto/status.h"

enum {
	WATCH_MS = 1000,	/* unanswered for this long: ask */
	WATCH_AGAIN_MS = 5000,	/* it answered, a connect() just takes its time */
	/* No answer to that either: the agent is gone, or hangs. Long, since a machine
	 * may also stand still without a word of QMP's (SIGSTOP, a host that swaps), and
	 * all that is open ends with the connection. */
	PATIENCE_MS = 90 * 1000,
	SYNC_TIME_MS = 5000,
	EVENTS_AGAIN_MS = 10 * 1000,	/* asked for anew because one was missing, at most */
};

static const char *const feature_names[] = { "snapshot", "tunnel-kinds", "boot-progress",
					     "time-rtt", "vsock-relay" };	/* in bit order */

/* --- calls with one answer ------------------------------------------------ */

/* A unary call the client remembers, so that closing can cancel it. */
struct request {
	struct guest_client *c;
	unsigned slot;
	unary_done_fn done;
	void *arg;
};

static void on_reply(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	scoped_free struct request *r = arg;
	struct guest_client *c = r->c;

	c->unary[r->slot] = NULL;
	if (reply)
		c->heard = true;
	r->done(r->arg, reply, err);
	client_check_done(c);
}

static int request_start(struct guest_client *c, const char *method, const ProtobufCMessage *msg,
			 const ProtobufCMessageDescriptor *reply_type, unsigned timeout_ms,
			 unary_done_fn done, void *arg, struct error *err)
{
	struct request *r;
	unsigned slot = 0;

	while (slot < CLIENT_UNARY_MAX && c->unary[slot])
		slot++;
	if (slot == CLIENT_UNARY_MAX)
		return error_set(err, -EBUSY, "guest agent: %d calls are under way already",
				 CLIENT_UNARY_MAX);
	r = xnew(struct request);
	*r = (struct request){ .c = c, .slot = slot, .done = done, .arg = arg };
	c->unary[slot] = unary_start(c->rpc, c->channel, method, msg, reply_type, timeout_ms,
				     on_reply, r);
	return 0;
}

static int get_info(struct guest_client *c, unsigned timeout_ms, unary_done_fn done, void *arg,
		    struct error *err)
{
	Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;

	return request_start(c, "/GuestService/GetInfo", &empty.base, &info__descriptor,
			     timeout_ms, done, arg, err);
}

/* --- life ----------------------------------------------------------------- */

static void cancel_all(struct guest_client *c)
{
	for (unsigned i = 0; i < CLIENT_UNARY_MAX; i++) {
		if (c->unary[i])
			unary_cancel(c->unary[i]);
	}
	if (c->events.call)
		grpc_call_cancel(c->events.call, NULL);
}

static void lose(struct guest_client *c, const struct error *why)
{
	struct error err = *why, gone = *why;

	if (c->state >= CLIENT_LOST)
		return;
	c->state = CLIENT_LOST;
	uv_timer_stop(&c->timer);
	cancel_all(c);
	gone.code = -ENOTCONN;	/* whatever it was, for them it is the connection */
	client_tunnels_abort(c, &gone);
	if (c->state == CLIENT_LOST)	/* a tunnel's callback may have closed us */
		c->cb.lost(c->cb.arg, &err);
}

static void on_timer_closed(uv_handle_t *h)
{
	struct guest_client *c = h->data;

	c->timer_closed = true;
	client_check_done(c);
}

static void on_link_closed(void *arg)
{
	struct guest_client *c = arg;

	c->link = NULL;
	client_check_done(c);
}

static void free_events_call(struct client_events *e)
{
	grpc_call_unref(steal_ptr(&e->call));
	grpc_byte_buffer_destroy(e->request);
	grpc_metadata_array_destroy(&e->initial);
	grpc_metadata_array_destroy(&e->trailing);
	grpc_slice_unref(e->status_text);
}

void client_check_done(struct guest_client *c)
{
	void (*closed)(void *arg) = c->closed;
	void *closed_arg = c->closed_arg;

	if (c->state != CLIENT_CLOSING || !c->timer_closed || c->link || c->tunnels ||
	    c->events.whole_tag.busy || c->events.recv_tag.busy)
		return;
	for (unsigned i = 0; i < CLIENT_UNARY_MAX; i++) {
		if (c->unary[i])
			return;
	}
	if (c->events.call)
		free_events_call(&c->events);
	if (c->channel)
		grpc_channel_destroy(c->channel);	/* closes the descriptor */
	free(c);
	if (closed)
		closed(closed_arg);
}

void guest_client_close(struct guest_client *c, void (*closed)(void *arg), void *arg)
{
	struct error why = { 0 };

	if (c->state == CLIENT_CLOSING)
		return;
	c->state = CLIENT_CLOSING;
	c->closed = closed;
	c->closed_arg = arg;
	error_set(&why, -ECANCELED, "the connection to the guest agent is closed");
	client_tunnels_abort(c, &why);
	cancel_all(c);
	if (c->link)
		link_host_close(c->link, on_link_closed, c);
	uv_close((uv_handle_t *)&c->timer, on_timer_closed);
}

/* --- events --------------------------------------------------------------- */

static void start_events(struct guest_client *c);

static void on_events_over(struct rpc_tag *tag, bool ok)
{
	struct guest_client *c = container_of(tag, struct guest_client, events.whole_tag);
	struct error err = { 0 };
	char text[STATUS_TEXT_MAX];

	if (c->state == CLIENT_READY && c->events.again &&
	    c->events.status == GRPC_STATUS_CANCELLED) {
		free_events_call(&c->events);
		start_events(c);
		return;
	}
	rpc_slice_text(c->events.status_text, text, sizeof(text));
	if (status_set_error(&err, c->events.status, text) == 0)
		error_set(&err, -ENOTCONN, "the guest agent ended the event stream");
	lose(c, &err);
	client_check_done(c);
}

static void receive_event(struct guest_client *c)
{
	grpc_op op = { .op = GRPC_OP_RECV_MESSAGE };

	op.data.recv_message.recv_message = &c->events.received;
	rpc_start(c->rpc, c->events.call, &op, 1, &c->events.recv_tag);
}

/* An event was left out. All there is comes first when events are asked for anew. */
static void ask_for_events_again(struct guest_client *c, const Event *event)
{
	struct client_events *e = &c->events;
	uint64_t now_ms = clock_mono_ms();
	struct error why = { 0 };

	if (e->again_ms && now_ms - e->again_ms < EVENTS_AGAIN_MS) {
		error_set(&why, -EPROTO, "the guest agent leaves out events again and again");
		lose(c, &why);
		return;
	}
	log_warn_limited("guest agent: event %llu came after %llu, asking for all there is",
			 (unsigned long long)event->revision, (unsigned long long)e->revision);
	e->again = true;
	e->again_ms = now_ms;
	grpc_call_cancel(e->call, NULL);
}

static void take_event(struct guest_client *c, Event *event)
{
	struct client_events *e = &c->events;

	/* Lima's agent does not count: 0 */
	if (!event->snapshot && event->revision && event->revision != e->revision + 1) {
		ask_for_events_again(c, event);
		return;
	}
	e->revision = event->revision;
	message_clean_event(event);
	c->cb.event(c->cb.arg, event);
}

static void on_event(struct rpc_tag *tag, bool ok)
{
	struct guest_client *c = container_of(tag, struct guest_client, events.recv_tag);
	grpc_byte_buffer *bb = steal_ptr(&c->events.received);
	struct error err = { 0 };
	Event *event;

	if (!bb) {	/* the end; on_events_over() says why */
		client_check_done(c);
		return;
	}
	c->heard = true;
	event = c->state == CLIENT_READY ? message_unpack(&event__descriptor, bb, &err) : NULL;
	grpc_byte_buffer_destroy(bb);
	if (event) {
		take_event(c, event);
		event__free_unpacked(event, NULL);
	} else if (err.code) {
		lose(c, &err);
	}
	if (c->state == CLIENT_READY && !c->events.again)
		receive_event(c);
	client_check_done(c);
}

static void start_events(struct guest_client *c)
{
	struct client_events *e = &c->events;
	Google__Protobuf__Empty empty = GOOGLE__PROTOBUF__EMPTY__INIT;
	grpc_op ops[5] = {
		{ .op = GRPC_OP_SEND_INITIAL_METADATA },
		{ .op = GRPC_OP_SEND_MESSAGE },
		{ .op = GRPC_OP_SEND_CLOSE_FROM_CLIENT },
		{ .op = GRPC_OP_RECV_INITIAL_METADATA },
		{ .op = GRPC_OP_RECV_STATUS_ON_CLIENT },
	};

	e->again = false;
	grpc_metadata_array_init(&e->initial);
	grpc_metadata_array_init(&e->trailing);
	e->status_text = grpc_empty_slice();
	e->request = message_pack(&empty.base);
	e->call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
					   rpc_queue(c->rpc),
					   grpc_slice_from_static_string("/GuestService/GetEvents"),
					   NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
	ops[1].data.send_message.send_message = e->request;
	ops[3].data.recv_initial_metadata.recv_initial_metadata = &e->initial;
	ops[4].data.recv_status_on_client.trailing_metadata = &e->trailing;
	ops[4].data.recv_status_on_client.status = &e->status;
	ops[4].data.recv_status_on_client.status_details = &e->status_text;
	rpc_start(c->rpc, e->call, ops, ARRAY_SIZE(ops), &e->whole_tag);
	receive_event(c);
}

/* --- greeting ------------------------------------------------------------- */

/* Lima's agent has no snapshots: its event stream starts with a difference to
 * what an earlier host was told (reference: guestagent, "Event stream"). What
 * Info lists, asked for once the stream runs, stands in for one: later events
 * only repeat what is in it or come after it. */
static void on_legacy_ports(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	struct guest_client *c = arg;
	Info *info = (Info *)reply;
	Event event = EVENT__INIT;

	if (c->state != CLIENT_READY || !info)
		return;
	message_clean_info(info);
	event.snapshot = true;
	event.n_added_local_ports = info->n_local_ports;
	event.added_local_ports = info->local_ports;
	c->cb.event(c->cb.arg, &event);
}

static unsigned read_features(const Info *info)
{
	unsigned features = 0;

	for (size_t i = 0; i < info->n_features; i++) {
		for (size_t k = 0; k < ARRAY_SIZE(feature_names); k++) {
			if (streq(info->features[i], feature_names[k]))
				features |= 1u << k;
		}
	}
	return features;
}

static void on_info(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	struct guest_client *c = arg;
	Info *info = (Info *)reply;
	struct error ignored = { 0 }, why;

	if (c->state != CLIENT_GREETING)
		return;
	if (!info) {
		why = *err;
		error_wrap(&why, "guest agent: greeting");
		lose(c, &why);
		return;
	}
	uv_timer_stop(&c->timer);
	message_clean_info(info);
	c->features = read_features(info);
	c->legacy = !(c->features & GUEST_FEATURE_TUNNEL_KINDS);
	c->state = CLIENT_READY;
	c->cb.ready(c->cb.arg, info);
	if (c->state != CLIENT_READY)
		return;
	start_events(c);
	if (!(c->features & GUEST_FEATURE_SNAPSHOT))
		get_info(c, 0, on_legacy_ports, c, &ignored);	/* a slot is free: the first */
}

static void start_channel(struct guest_client *c, int fd)
{
	grpc_channel_credentials *plain = grpc_insecure_credentials_create();
	struct error ignored = { 0 };

	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	c->channel = grpc_channel_create_from_fd("localhost", fd, plain, rpc_client_args());
	grpc_channel_credentials_release(plain);
	c->state = CLIENT_GREETING;
	get_info(c, 0, on_info, c, &ignored);	/* the slots are all free */
}

static void on_linked(void *arg, int fd)
{
	struct guest_client *c = arg;

	if (c->state != CLIENT_LINKING) {
		close(fd);
		return;
	}
	link_host_close(c->link, on_link_closed, c);
	start_channel(c, fd);
}

static void on_link_failed(void *arg, const struct error *why)
{
	lose(arg, why);
}

static void on_connect_timeout(uv_timer_t *timer)
{
	struct guest_client *c = timer->data;
	struct error err = { 0 };

	error_set(&err, -ETIMEDOUT, "the guest agent did not answer in %u ms",
		  (unsigned)uv_timer_get_repeat(timer));
	lose(c, &err);
}

int guest_client_new(struct loop *loop, struct rpc *rpc, int fd,
		     const struct guest_client_options *opts,
		     const struct guest_client_callbacks *cb, struct guest_client **ret,
		     struct error *err)
{
	static const struct link_host_callbacks link_cb = { on_linked, on_link_failed };
	scoped_free struct guest_client *c = xnew(struct guest_client);
	scoped_fd int owned = fd;

	c->loop = loop;
	c->rpc = rpc;
	c->cb = *cb;
	c->patience_ms = opts->patience_ms ? opts->patience_ms : PATIENCE_MS;
	rpc_tag_init(&c->events.whole_tag, on_events_over);
	rpc_tag_init(&c->events.recv_tag, on_event);
	if (opts->link_secret) {
		if (link_host_new(loop, steal_fd(&owned), opts->link_secret, &link_cb, c,
				  &c->link, err) < 0)
			return error_wrap(err, "guest agent");
	} else {
		start_channel(c, steal_fd(&owned));
	}
	uv_timer_init(&loop->uv, &c->timer);
	c->timer.data = c;
	if (opts->connect_timeout_ms > 0)
		uv_timer_start(&c->timer, on_connect_timeout, opts->connect_timeout_ms,
			       opts->connect_timeout_ms);
	*ret = steal_ptr(&c);
	return 0;
}

void guest_client_kick(struct guest_client *c)
{
	if (c->state == CLIENT_LINKING)
		link_host_kick(c->link);
}

unsigned guest_client_features(const struct guest_client *c)
{
	return c->features;
}

/* --- is it still there? ---------------------------------------------------- */

static void on_watch(uv_timer_t *timer);

static void on_probe(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	struct guest_client *c = arg;
	struct error why = *err;

	c->asking = false;
	if (c->state != CLIENT_READY || c->paused)
		return;
	if (c->heard) {
		if (client_tunnels_waiting(c))
			uv_timer_start(&c->timer, on_watch, WATCH_AGAIN_MS, 0);
		return;
	}
	if (err->code == -ETIMEDOUT)
		error_set(&why, -ETIMEDOUT, "the guest agent did not answer in %u s",
			  c->patience_ms / 1000);
	lose(c, &why);
}

static void ask(struct guest_client *c)
{
	struct error ignored = { 0 };

	if (c->asking || c->paused)
		return;
	c->heard = false;
	c->asking = get_info(c, c->patience_ms, on_probe, c, &ignored) == 0;
	if (!c->asking)
		uv_timer_start(&c->timer, on_watch, WATCH_MS, 0);	/* others ask already */
}

static void on_watch(uv_timer_t *timer)
{
	struct guest_client *c = timer->data;

	if (client_tunnels_waiting(c))
		ask(c);
}

void client_watch(struct guest_client *c)
{
	if (!c->asking && !uv_is_active((uv_handle_t *)&c->timer))
		uv_timer_start(&c->timer, on_watch, WATCH_MS, 0);
}

void guest_client_set_paused(struct guest_client *c, bool paused)
{
	c->paused = paused;
	if (paused || c->state != CLIENT_READY)
		return;
	c->heard = true;	/* what was asked before or meanwhile says nothing */
	client_watch(c);
}

/* --- the clock ------------------------------------------------------------- */

struct sync {		/* owner: the call under way */
	struct guest_client *c;
	void (*done)(void *arg, int64_t drift_ms, bool adjusted, const struct error *err);
	void *arg;
	uint64_t asked_ns;
};

static void sync_fail(struct sync *s, const struct error *why)
{
	struct error err = *why;

	error_wrap(&err, "guest clock");
	s->done(s->arg, 0, false, &err);
	free(s);
}

static void on_synced(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	struct sync *s = arg;
	TimeSyncResponse *res = (TimeSyncResponse *)reply;
	struct error none = ERROR_NONE, why = { 0 };

	if (!res) {
		sync_fail(s, err);
		return;
	}
	if (*res->error) {
		message_clean_text(res->error, MESSAGE_TEXT_MAX);
		error_set(&why, -EIO, "%s", res->error);
		sync_fail(s, &why);
		return;
	}
	s->done(s->arg, res->drift_ms, res->adjusted, &none);
	free(s);
}

/* The round trip is known: send the time. Our agent gets the round trip and
 * counts half of it in; for Lima's the time sent is the one at arrival. */
static void on_round_trip(void *arg, const ProtobufCMessage *reply, const struct error *err)
{
	struct sync *s = arg;
	struct guest_client *c = s->c;
	uint64_t rtt_ns = clock_mono_ns() - s->asked_ns;
	Google__Protobuf__Timestamp time = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
	TimeSyncRequest req = TIME_SYNC_REQUEST__INIT;
	struct error why = { 0 };
	struct timespec now;

	if (!reply || c->state != CLIENT_READY) {
		if (reply)
			error_set(&why, -ECANCELED, "the connection is closed");
		else if (err->code == -ETIMEDOUT && c->state == CLIENT_READY)
			ask(c);
		sync_fail(s, reply ? &why : err);
		return;
	}
	clock_gettime(CLOCK_REALTIME, &now);
	time.seconds = now.tv_sec;
	time.nanos = (int32_t)now.tv_nsec;
	if (c->features & GUEST_FEATURE_TIME_RTT) {
		req.round_trip_ns = (int64_t)rtt_ns;
	} else {
		uint64_t ns = (uint64_t)now.tv_nsec + rtt_ns / 2;

		time.seconds += (int64_t)(ns / 1000000000);
		time.nanos = (int32_t)(ns % 1000000000);
	}
	req.host_time = &time;
	if (request_start(c, "/GuestService/SyncTime", &req.base, &time_sync_response__descriptor,
			  SYNC_TIME_MS, on_synced, s, &why) < 0)
		sync_fail(s, &why);
}

static void sync_refused(void *arg)
{
	struct sync *s = arg;
	struct error why = { 0 };

	error_set(&why, -ENOTCONN, "no connection to the guest agent, or it is busy");
	sync_fail(s, &why);
}

void guest_client_sync_time(struct guest_client *c,
			    void (*done)(void *arg, int64_t drift_ms, bool adjusted,
					 const struct error *err),
			    void *arg)
{
	struct sync *s = xnew(struct sync);
	struct error ignored = { 0 };

	*s = (struct sync){ .c = c, .done = done, .arg = arg, .asked_ns = clock_mono_ns() };
	if (c->state != CLIENT_READY ||
	    get_info(c, SYNC_TIME_MS, on_round_trip, s, &ignored) < 0)
		loop_post(c->loop, sync_refused, s);
}
