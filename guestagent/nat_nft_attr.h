/* nat_nft_attr.h - attributes of netlink messages, with bounds
 *
 * An attribute is a length and a type of 16 bits each, then the value, padded to
 * 4 bytes (linux/netlink.h, struct nlattr); values may be attributes again.
 */
#pragma once

#include <linux/netlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "guestagent/nat_rules.h"

enum { ATTRS_MAX = 31 };	/* the highest type that is read */

struct attr {
	uint16_t type;
	const uint8_t *data;	/* NULL: not there */
	size_t len;
};

/* The next attribute in @in, which moves on; false at the end. */
static inline bool attr_next(struct attr *in, struct attr *ret)
{
	struct nlattr head;
	size_t step;

	if (!in->data || in->len < sizeof(head))
		return false;
	memcpy(&head, in->data, sizeof(head));
	if (head.nla_len < sizeof(head) || head.nla_len > in->len)
		return false;
	*ret = (struct attr){ .type = head.nla_type & NLA_TYPE_MASK,
			      .data = in->data + sizeof(head),
			      .len = head.nla_len - sizeof(head) };
	step = NLA_ALIGN(head.nla_len);
	if (step > in->len)
		step = in->len;
	in->data += step;
	in->len -= step;
	return true;
}

/* Sorts those within @in by type into @ret[0..max]. */
static inline void attrs_read(const struct attr *in, struct attr *ret, uint16_t max)
{
	struct attr rest = *in, a;

	memset(ret, 0, (max + 1u) * sizeof(*ret));
	while (attr_next(&rest, &a))
		if (a.type <= max)
			ret[a.type] = a;
}

static inline struct attr attr_nested(const struct attr *in, uint16_t type)
{
	struct attr rest = *in, a;

	while (attr_next(&rest, &a))
		if (a.type == type)
			return a;
	return (struct attr){ 0 };
}

/* 0 when it is not there. */
static inline uint32_t attr_be32(const struct attr *a)
{
	if (!a->data || a->len < 4)
		return 0;
	return (uint32_t)a->data[0] << 24 | (uint32_t)a->data[1] << 16 | (uint32_t)a->data[2] << 8 |
	       a->data[3];
}

static inline bool attr_text(const struct attr *a, char *ret, size_t size)
{
	size_t len = a->data ? strnlen((const char *)a->data, a->len) : 0;

	if (len == 0 || len >= size)
		return false;
	memcpy(ret, a->data, len);
	ret[len] = 0;
	return true;
}

/* The chain that a nested NFTA_DATA_VERDICT jumps or goes to. */
uint32_t nat_nft_verdict(struct nat_rules *r, const struct attr *verdict);
