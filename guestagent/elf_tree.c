#include "guestagent/elf_tree.h"

#include <search.h>
#include <stddef.h>

/* libelf owns the object; a lock, which nothing here needs, follows the root */
struct elf_tree {
	void *root;
};

void eu_search_tree_init(struct elf_tree *tree)
{
	tree->root = NULL;
}

void eu_search_tree_fini(struct elf_tree *tree, void (*free_node)(void *node))
{
	tdestroy(tree->root, free_node);
	tree->root = NULL;
}

void *eu_tsearch(const void *key, struct elf_tree *tree, elf_tree_compare *compare)
{
	return tsearch(key, &tree->root, compare);
}

void *eu_tdelete(const void *key, struct elf_tree *tree, elf_tree_compare *compare)
{
	return tdelete(key, &tree->root, compare);
}
