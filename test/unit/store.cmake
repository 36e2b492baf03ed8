lima_unit(layout lima_store)
lima_unit(pid lima_store)
lima_unit(lock lima_store)
