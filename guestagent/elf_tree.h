/* elf_tree.h - the search tree that some builds of libelf.a forget
 *
 * From elfutils 0.192 on libelf keeps its raw chunks in a tree whose functions live
 * in a private archive (elfutils lib/eu-search.h). Distributions that do not fold
 * that archive into libelf.a (Debian 13) ship one that cannot be linked statically.
 * Compiled in only where CMake has seen that this helps; called by libelf alone.
 * Without a lock: libbpf opens our one ELF object from one thread.
 */
#pragma once

struct elf_tree;

typedef int elf_tree_compare(const void *a, const void *b);

void eu_search_tree_init(struct elf_tree *tree);
void eu_search_tree_fini(struct elf_tree *tree, void (*free_node)(void *node));
void *eu_tsearch(const void *key, struct elf_tree *tree, elf_tree_compare *compare);
void *eu_tdelete(const void *key, struct elf_tree *tree, elf_tree_compare *compare);
