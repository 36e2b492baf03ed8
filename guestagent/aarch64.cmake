# Cross build of the guest agent for aarch64 guests (-DLIMA_GUESTAGENT_AARCH64=ON).
# Debian and Ubuntu (where a second architecture needs its own package sources):
#
#	dpkg --add-architecture arm64 && apt-get update
#	apt-get install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libuv1-dev:arm64 \
#		libprotobuf-c-dev:arm64 libgrpc-dev:arm64 libbpf-dev:arm64 libelf-dev:arm64 \
#		zlib1g-dev:arm64
#
# protoc, clang (for BPF) and CMake stay those of the building machine.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_C_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
# find_library() must not fall back to this machine's own libraries.
set(CMAKE_SYSTEM_LIBRARY_PATH /usr/lib/aarch64-linux-gnu)
set(CMAKE_IGNORE_PATH /usr/lib/x86_64-linux-gnu /lib/x86_64-linux-gnu)
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/aarch64-linux-gnu/pkgconfig:/usr/share/pkgconfig)
