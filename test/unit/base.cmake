lima_unit(error)
