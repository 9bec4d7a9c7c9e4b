# From a fresh Debian 12 with git and make to a running demo: `make demo`. Everything else it needs, it installs.
#   make demo       the Debian guest migrates plain, through SWAM, and back; writes out/demo.json and a table
#   make test       types, lint, unit, contract, fuzz (3 minutes), interop and end-to-end tests (under 30 minutes)
#   make test-long  the end-to-end tests that take long, an hour of soak, an hour of fuzzing beside them
#   make deb        out/swam_VERSION_amd64.deb, for Debian 12 and 13
#   make check      types, lint, unit and contract tests
#   make lint, make format
# The lab makes namespaces, mounts and libvirts of its own: demo, test, test-long and bootstrap run as root, through
# sudo for others. ARGS='...' is handed to the demo and to test-long.
export PATH := $(PATH):/usr/sbin:/sbin

NODE := bin/node
BIN := node_modules/.bin

# What Node's packages are built with; the lab's hosts and guests; the peers that the interop tests talk to; what builds and
# tests the Debian package.
PACKAGES := ca-certificates git build-essential python3 \
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils \
  nftables iproute2 procps openssh-server openssh-client debootstrap e2fsprogs xfsprogs cpio busybox-static xz-utils zstd \
  nbdkit libnbd-bin python3-libnbd nbd-server \
  dpkg-dev debhelper lintian lowdown man-db systemd-container

.PHONY: demo test test-long deb check types lint format bootstrap

ifeq ($(shell id -u),0)

demo: node_modules/.bootstrapped
	$(NODE) test/demo/demo.ts $(ARGS)

# Two runs, of which both are made: two files at a time where nothing is held to a clock, then one at a time.
test: types lint
	failed=0; \
	$(NODE) --test --test-concurrency=2 'test/unit/**/*.test.ts' 'test/contract/**/*.test.ts' || failed=1; \
	$(NODE) --test --test-concurrency=1 'test/fuzz/**/*.test.ts' 'test/interop/**/*.test.ts' 'test/e2e/**/*.test.ts' || failed=1; \
	exit $$failed

# Some two and a half hours; ARGS='test/long/swam-link.test.ts …' runs only these files. The summary is out/test-long.md.
test-long: types lint
	$(NODE) test/long/main.ts $(ARGS)

deb: node_modules/.bootstrapped
	debian/build

bootstrap: node_modules/.bootstrapped

node_modules/.bootstrapped: package-lock.json bin/bootstrap Makefile
	bin/bootstrap $(PACKAGES)
	touch $@

else

demo test test-long deb bootstrap node_modules/.bootstrapped:
	@command -v sudo >/dev/null || { echo "make $@: needs root (apt-get, namespaces, libvirt); this is uid $$(id -u) and there is no sudo" >&2; exit 1; }
	sudo $(MAKE) --no-print-directory $@ ARGS='$(ARGS)'

node_modules/.bootstrapped: package-lock.json bin/bootstrap Makefile

endif

check: types lint
	$(NODE) --test 'test/unit/**/*.test.ts' 'test/contract/**/*.test.ts'

types: node_modules/.bootstrapped
	$(NODE) $(BIN)/tsc --noEmit

lint: node_modules/.bootstrapped
	$(NODE) $(BIN)/biome check --error-on-warnings .

format: node_modules/.bootstrapped
	$(NODE) $(BIN)/biome check --write .
