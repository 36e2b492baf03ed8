lima_unit(cidata lima_hostagent lima_store PkgConfig::ARCHIVE PkgConfig::JANSSON)
