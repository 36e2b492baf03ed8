lima_unit(cidata lima_hostagent lima_store PkgConfig::ARCHIVE PkgConfig::JANSSON)
lima_unit(build lima_store)
