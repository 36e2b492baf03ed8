lima_unit(error)
lima_unit(child)
lima_unit(loop)
lima_unit(path)
