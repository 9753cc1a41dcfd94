# Each recipe does all its own set-up on a bare Debian machine with Rust; run as root.

export PATH := $(PATH):/usr/sbin:/sbin

PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_SECONDS ?= 240

.PHONY: help demo test bench fuzz lint build install deb prepare

# The list of these.
help:
	@awk '/^# /{text=substr($$0,3)} /^$$/{text=""} /^[a-z]+:/{sub(/:.*/,""); printf "make %-8s %s\n",$$0,text}' Makefile

# A cloud and two factories in network namespaces, all on the same network. Stays up until Ctrl-C on a terminal.
demo: prepare
	cargo build --release --workspace --bins --quiet
	target/release/vp-demo $(DEMO)

# Everything that CI runs.
test: prepare lint build
	netns-tests/scripts/test

# The Debian packages that the tests, the demo and the lab need.
prepare:
	netns-tests/scripts/prepare

# Format, clippy and documentation, with warnings denied.
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

# The binaries that the end-to-end tests start.
build:
	cargo build --workspace --bins

# Two agents beside other tunnels and proxies, interleaved; half an hour, and ten minutes once to build the others.
bench:
	netns-tests/scripts/prepare-bench
	cargo build --release --workspace --bins --quiet
	target/release/vp-bench $(BENCH)

# Each fuzz target for four minutes, from the corpus of fuzz/corpus; needs cargo-fuzz. FUZZ_SECONDS=60 for a minute each.
fuzz:
	@for target in packet datagram offer config dns certificate; do \
		mkdir -p fuzz/target/found/$$target && RUSTC_BOOTSTRAP=1 cargo fuzz run $$target fuzz/target/found/$$target \
		fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

# Binaries, unit, man pages, completions and a first configuration, into PREFIX (/usr/local); DESTDIR for packagers.
install:
	cargo build --release --locked --quiet -p vp-agent -p vp-ctl
	packaging/install "$(DESTDIR)" "$(PREFIX)"

# The same as a Debian package in target/.
deb:
	cargo build --release --locked --quiet -p vp-agent -p vp-ctl
	packaging/deb
