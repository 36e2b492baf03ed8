#include "guestagent/nat_nft.h"

#include <assert.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "guestagent/nat_nft_attr.h"
#include "lib/base/mem.h"

enum {
	REPLY_BYTES = 64 * 1024,	/* the kernel fills at most 32 KiB per recv() */
	REQUEST_BYTES = 1024,
	INTR_RETRIES = 4,
};

/* Which table the rules of nat_nft_tables.items[i] are from. */
struct table {
	uint8_t nfproto;
	char name[NAT_NAME_MAX];
};

struct reader {
	int fd;
	uint32_t seq;
	struct nat_nft_tables *ret;
	struct table tables[NAT_NFT_TABLES_MAX];
	size_t now;			/* the table being read */
	struct nat_nft_elems *elems;	/* the set being read */
	_Alignas(struct nlmsghdr) uint8_t request[REQUEST_BYTES];
	_Alignas(struct nlmsghdr) uint8_t reply[REPLY_BYTES];
};

typedef void (*message_fn)(struct reader *r, uint8_t nfproto, const uint8_t *attrs, size_t len);

static uint8_t family_of(uint8_t nfproto)
{
	return nfproto == NFPROTO_IPV4 ? AF_INET : nfproto == NFPROTO_IPV6 ? AF_INET6 : 0;
}

static void put_text(struct reader *r, uint16_t type, const char *text)
{
	struct nlmsghdr *h = (void *)r->request;
	struct nlattr a = { .nla_type = type, .nla_len = (uint16_t)(sizeof(a) + strlen(text) + 1) };

	memcpy(r->request + h->nlmsg_len, &a, sizeof(a));
	memcpy(r->request + h->nlmsg_len + sizeof(a), text, strlen(text) + 1);
	h->nlmsg_len += (uint32_t)NLA_ALIGN(a.nla_len);
}

/* Asks for everything of kind @type; @table, @set: of these only, or NULL. The
 * numbers of the two attributes are 1 and 2 in each of these requests. */
static int request(struct reader *r, int type, uint8_t nfproto, const char *table, const char *set,
		   struct error *err)
{
	struct nlmsghdr *h = (void *)r->request;
	struct nfgenmsg *g = NLMSG_DATA(h);

	memset(r->request, 0, sizeof(r->request));
	*h = (struct nlmsghdr){ .nlmsg_len = NLMSG_LENGTH(sizeof(*g)),
				.nlmsg_type = (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type),
				.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
				.nlmsg_seq = ++r->seq };
	g->nfgen_family = nfproto;
	if (table)
		put_text(r, NFTA_RULE_TABLE, table);
	if (set)
		put_text(r, NFTA_SET_ELEM_LIST_SET, set);
	if (send(r->fd, h, h->nlmsg_len, 0) < 0)
		return error_sys(err, -errno, "nf_tables: request");
	return 0;
}

static_assert((int)NFTA_RULE_TABLE == (int)NFTA_SET_ELEM_LIST_TABLE, "one put_text() for both");

/* One datagram of an answer. 1: that was the end. */
static int take_reply(struct reader *r, size_t len, message_fn take, struct error *err)
{
	const struct nlmsghdr *h = (const void *)r->reply;

	for (; NLMSG_OK(h, len); h = NLMSG_NEXT(h, len)) {
		const struct nfgenmsg *g = NLMSG_DATA(h);
		const struct nlmsgerr *e = NLMSG_DATA(h);

		if (h->nlmsg_seq != r->seq)
			continue;
		if (h->nlmsg_flags & NLM_F_DUMP_INTR)
			return error_set(err, -EINTR, "nf_tables: changed while read");
		if (h->nlmsg_type == NLMSG_DONE)
			return 1;
		if (h->nlmsg_type == NLMSG_ERROR) {
			int code = h->nlmsg_len >= NLMSG_LENGTH(sizeof(*e)) ? e->error : -EPROTO;

			return error_sys(err, code < 0 ? code : -EPROTO, "nf_tables: dump");
		}
		if (h->nlmsg_len >= NLMSG_LENGTH(sizeof(*g)))
			take(r, g->nfgen_family, (const uint8_t *)g + NLMSG_ALIGN(sizeof(*g)),
			     h->nlmsg_len - NLMSG_LENGTH(sizeof(*g)));
	}
	return 0;
}

static int dump(struct reader *r, int type, uint8_t nfproto, const char *table, const char *set,
		message_fn take, struct error *err)
{
	int rc = request(r, type, nfproto, table, set, err);

	while (rc == 0) {
		ssize_t n = recv(r->fd, r->reply, sizeof(r->reply), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_sys(err, -errno, "nf_tables: answer");
		rc = take_reply(r, (size_t)n, take, err);
	}
	return rc < 0 ? rc : 0;
}

static struct nat_rules *table_rules(struct reader *r, uint8_t nfproto, const char *name)
{
	size_t i;

	for (i = 0; i < r->ret->len; i++)
		if (r->tables[i].nfproto == nfproto && streq(r->tables[i].name, name))
			return r->ret->items[i];
	if (i == NAT_NFT_TABLES_MAX)
		return NULL;
	r->tables[i].nfproto = nfproto;
	memcpy(r->tables[i].name, name, strlen(name) + 1);
	r->ret->items[i] = nat_rules_new(family_of(nfproto));
	r->ret->len++;
	return r->ret->items[i];
}

static void take_chain(struct reader *r, uint8_t nfproto, const uint8_t *attrs, size_t len)
{
	struct attr a[NFTA_CHAIN_MAX + 1], hook[NFTA_HOOK_MAX + 1];
	struct attr all = { .data = attrs, .len = len };
	char table[NAT_NAME_MAX], name[NAT_NAME_MAX], type[16];
	struct nat_rules *rules;
	uint32_t num;

	attrs_read(&all, a, NFTA_CHAIN_MAX);
	attrs_read(&a[NFTA_CHAIN_HOOK], hook, NFTA_HOOK_MAX);
	num = attr_be32(&hook[NFTA_HOOK_HOOKNUM]);
	if (!a[NFTA_CHAIN_HOOK].data || !attr_text(&a[NFTA_CHAIN_TYPE], type, sizeof(type)) ||
	    !streq(type, "nat") || (num != NF_INET_PRE_ROUTING && num != NF_INET_LOCAL_OUT) ||
	    !attr_text(&a[NFTA_CHAIN_TABLE], table, sizeof(table)) ||
	    !attr_text(&a[NFTA_CHAIN_NAME], name, sizeof(name)))
		return;
	rules = table_rules(r, nfproto, table);
	if (rules)
		nat_rules_hook(rules, nat_rules_chain(rules, name),
			       num == NF_INET_PRE_ROUTING ? NAT_HOOK_PREROUTING : NAT_HOOK_OUTPUT);
}

static void take_rule(struct reader *r, uint8_t nfproto, const uint8_t *attrs, size_t len)
{
	const struct table *t = &r->tables[r->now];
	struct attr all = { .data = attrs, .len = len }, table;

	table = attr_nested(&all, NFTA_RULE_TABLE);	/* old kernels dump them all */
	if (nfproto == t->nfproto && table.len == strlen(t->name) + 1 &&
	    memcmp(table.data, t->name, table.len) == 0)
		nat_nft_rule(r->ret->items[r->now], family_of(nfproto), attrs, len);
}

static void take_elems(struct reader *r, uint8_t nfproto, const uint8_t *attrs, size_t len)
{
	nat_nft_elems_add(r->elems, r->ret->items[r->now], attrs, len);
}

static int read_sets(struct reader *r, const struct table *t, struct error *err)
{
	struct nat_rules *rules = r->ret->items[r->now];

	for (uint32_t i = 0; i < nat_rules_sets(rules); i++) {
		const char *name = nat_rules_set_name(rules, i);
		int rc;

		if (!name)
			continue;
		r->elems = nat_nft_elems_new();
		rc = dump(r, NFT_MSG_GETSETELEM, t->nfproto, t->name, name, take_elems, err);
		nat_nft_elems_finish(r->elems, rules, i);
		if (rc < 0)
			return rc == -ENOENT ? error_set(err, -EINTR, "nf_tables: a set is gone") : rc;
	}
	return 0;
}

static int read_all(struct reader *r, struct error *err)
{
	int rc = dump(r, NFT_MSG_GETCHAIN, NFPROTO_UNSPEC, NULL, NULL, take_chain, err);

	for (r->now = 0; rc == 0 && r->now < r->ret->len; r->now++) {
		const struct table *t = &r->tables[r->now];

		rc = dump(r, NFT_MSG_GETRULE, t->nfproto, t->name, NULL, take_rule, err);
		if (rc == 0)
			rc = read_sets(r, t, err);
	}
	return rc;
}

void nat_nft_done(struct nat_nft_tables *t)
{
	for (size_t i = 0; i < t->len; i++)
		nat_rules_free(t->items[i]);
	*t = (struct nat_nft_tables){ 0 };
}

int nat_nft_read(struct nat_nft_tables *ret, struct error *err)
{
	scoped_free struct reader *r = xnew(struct reader);
	int rc = -EINTR;

	r->ret = ret;
	for (int i = 0; rc == -EINTR && i < INTR_RETRIES; i++) {
		/* A half-read answer would mix with the next: a new socket each. */
		scoped_fd int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);

		nat_nft_done(ret);
		if (fd < 0)
			return error_sys(err, -errno, "nf_tables: socket");
		r->fd = fd;
		rc = read_all(r, err);
	}
	if (rc < 0)
		nat_nft_done(ret);
	return rc;
}
