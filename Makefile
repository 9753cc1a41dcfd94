# Each recipe does all its own set-up on a bare Debian machine with Rust; run as root.

export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: demo test bench lint build

# A cloud and two factories in network namespaces, all on the same network. Stays up until Ctrl-C on a terminal.
demo:
	netns-tests/scripts/prepare
	cargo build --release --workspace --bins --quiet
	target/release/vp-demo $(DEMO)

# Everything that CI runs.
test: lint build
	netns-tests/scripts/test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

# The binaries that the end-to-end tests start.
build:
	cargo build --workspace --bins

# One TCP stream through two agents and through wireguard-go, interleaved; about two minutes.
bench:
	netns-tests/scripts/prepare
	cargo build --release --workspace --bins --quiet
	target/release/vp-bench $(BENCH)
