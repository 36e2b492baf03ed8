/* snapshot.h - the verbs below `limactl snapshot` */
#pragma once

#include "cmd/limactl/verb.h"

extern const struct verb verb_snapshot_create, verb_snapshot_apply, verb_snapshot_delete,
	verb_snapshot_list;
