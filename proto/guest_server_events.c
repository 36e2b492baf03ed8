/* GetEvents: any number of listeners, each with its queue. A listener starts
 * with a snapshot; whoever is too slow for the bounded queue loses what waits in
 * it and gets a snapshot again, which says all of it. */
#include "lib/base/mem.h"
#include "proto/guest_server_impl.h"
#include "proto/message.h"

enum {
	QUEUE_EVENTS_MAX = 256,
	QUEUE_BYTES_MAX = 1 << 20,
	LISTENERS_MAX = 64,
};

struct queued {
	struct queued *next;
	grpc_byte_buffer *message;
};

struct event_listener {	/* owner: itself, until its operations completed */
	struct guest_server *server;
	struct event_listener *next, **pprev;
	grpc_call *call;
	struct rpc_tag send_tag, close_tag;
	bool headers_sent;
	bool snapshot_wanted;
	bool over;
	int cancelled;
	grpc_byte_buffer *sending;
	struct queued *head, **tail;
	size_t count, bytes;
};

static void drop_queue(struct event_listener *l)
{
	while (l->head) {
		struct queued *q = l->head;

		l->head = q->next;
		grpc_byte_buffer_destroy(q->message);
		free(q);
	}
	l->tail = &l->head;
	l->count = l->bytes = 0;
}

static void check_done(struct event_listener *l)
{
	struct guest_server *s = l->server;

	if (!l->over || l->send_tag.busy || l->close_tag.busy)
		return;
	*l->pprev = l->next;
	if (l->next)
		l->next->pprev = l->pprev;
	drop_queue(l);
	grpc_call_unref(l->call);
	free(l);
	server_check_done(s);
}

/* What goes next: a snapshot if one is due, else the oldest queued event. */
static grpc_byte_buffer *take_next(struct event_listener *l)
{
	struct guest_server *s = l->server;
	grpc_byte_buffer *message;
	struct queued *q;

	if (l->snapshot_wanted) {
		l->snapshot_wanted = false;
		drop_queue(l);	/* it holds all that */
		return message_pack(&s->cb.get_snapshot(s->cb.arg)->base);
	}
	q = l->head;
	if (!q)
		return NULL;
	l->head = q->next;
	if (!l->head)
		l->tail = &l->head;
	message = q->message;
	l->count--;
	l->bytes -= grpc_byte_buffer_length(message);
	free(q);
	return message;
}

static void send_next(struct event_listener *l)
{
	grpc_op ops[2] = { 0 };
	size_t n = 0;

	if (l->send_tag.busy || l->over)
		return;
	l->sending = take_next(l);
	if (!l->sending)
		return;
	if (!l->headers_sent) {
		ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
		l->headers_sent = true;
	}
	ops[n].op = GRPC_OP_SEND_MESSAGE;
	ops[n++].data.send_message.send_message = l->sending;
	rpc_start(l->server->rpc, l->call, ops, n, &l->send_tag);
	if (l->server->link)	/* gRPC wrote it in there already, as a rule */
		link_guest_flush(l->server->link);
}

static void on_sent(struct rpc_tag *tag, bool ok)
{
	struct event_listener *l = container_of(tag, struct event_listener, send_tag);

	grpc_byte_buffer_destroy(steal_ptr(&l->sending));
	if (ok)		/* otherwise the call is over, which on_closed() tells */
		send_next(l);
	check_done(l);
}

static void on_closed(struct rpc_tag *tag, bool ok)
{
	struct event_listener *l = container_of(tag, struct event_listener, close_tag);

	l->over = true;
	check_done(l);
}

/* Too many: refuse, by a status that ends the call at once. */
static void refuse(struct event_listener *l)
{
	grpc_slice text = grpc_slice_from_static_string("too many event listeners");
	grpc_op ops[2] = { { .op = GRPC_OP_SEND_INITIAL_METADATA },
			   { .op = GRPC_OP_SEND_STATUS_FROM_SERVER } };

	ops[1].data.send_status_from_server.status = GRPC_STATUS_RESOURCE_EXHAUSTED;
	ops[1].data.send_status_from_server.status_details = &text;
	l->over = true;
	rpc_start(l->server->rpc, l->call, ops, 2, &l->send_tag);
}

static void on_refused(struct rpc_tag *tag, bool ok)
{
	check_done(container_of(tag, struct event_listener, send_tag));
}

void server_get_events(struct guest_server *s, grpc_call *call)
{
	struct event_listener *l = xnew(struct event_listener);
	grpc_op op = { .op = GRPC_OP_RECV_CLOSE_ON_SERVER };
	unsigned others = 0;

	for (struct event_listener *o = s->listeners; o; o = o->next)
		others++;
	l->server = s;
	l->call = call;
	l->tail = &l->head;
	rpc_tag_init(&l->send_tag, others < LISTENERS_MAX ? on_sent : on_refused);
	rpc_tag_init(&l->close_tag, on_closed);
	l->next = s->listeners;
	l->pprev = &s->listeners;
	if (l->next)
		l->next->pprev = &l->next;
	s->listeners = l;
	op.data.recv_close_on_server.cancelled = &l->cancelled;
	rpc_start(s->rpc, call, &op, 1, &l->close_tag);
	if (others >= LISTENERS_MAX) {
		refuse(l);
		return;
	}
	l->snapshot_wanted = true;
	send_next(l);
}

void guest_server_publish(struct guest_server *s, const Event *event)
{
	for (struct event_listener *l = s->listeners; l; l = l->next) {
		struct queued *q;

		if (l->over || l->snapshot_wanted)
			continue;
		q = xnew(struct queued);
		q->message = message_pack(&event->base);
		*l->tail = q;
		l->tail = &q->next;
		l->count++;
		l->bytes += grpc_byte_buffer_length(q->message);
		if (l->count > QUEUE_EVENTS_MAX || l->bytes > QUEUE_BYTES_MAX) {
			drop_queue(l);
			l->snapshot_wanted = true;
		}
		send_next(l);
	}
}
