# `make` lists the targets. `make test` is all that a fresh machine needs.

# Most tests wait for the server rather than use the CPU, so more files run at once than there are cores.
# The time-out ends a file that hangs before the whole run times out, so that its name and the other results are shown.
NODE_TEST = timeout --foreground 600 node --test --test-reporter=spec --test-concurrency=4 --test-timeout=400000

# Browsers use the CPU: two files at once are as fast as four, and no test waits for a camera.
BROWSER_TEST = $(subst --test-concurrency=4,--test-concurrency=2,$(NODE_TEST))

# Client tests that work whichever node a client is on.
CLUSTER_STORIES = flows devices resume presence acks errors auth authorize metrics
CLUSTER_NODES = 2 3 8

# Tests of history that are repeated with Postgres.
HISTORY_STORIES = history operation

FUZZ_TARGETS = client_event bus_message redis_record token query
FUZZ_SECONDS ?= 300

.DEFAULT_GOAL := help
.PHONY: help run build test-docs bench bench-floor bench-instructions bench-scale bench-traces deny fuzz abuse lint test test-setup test-rust test-server test-clients test-api test-cluster test-browser test-deploy sim types

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## start the server (release build) on http://127.0.0.1:3000/
	cargo run --release --locked

build: ## the release binary, target/release/switchboard
	cargo build --release --locked

lint: ## formatting and clippy, warnings denied
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings

.PHONY: alerts
alerts: ## write the alerts for Kubernetes anew, after a change in deploy/prometheus/rules/
	node scripts/alerts.mjs

.PHONY: chart
chart: test-setup ## write the README of the Helm chart anew, after a change in its values.yaml
	node scripts/chart.mjs

bench: build bench-floor ## measure beside Node and a bare relay, write the table into docs/operations/performance.md
	cd benches && npm ci --no-audit --no-fund --loglevel=error && node run.mjs

bench-floor: # the bare relay that `bench` and `bench-instructions` measure beside
	cargo build --release --locked --manifest-path benches/floor/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)/floor

bench-instructions: build bench-floor ## instructions and system calls a call: takes 2 minutes and valgrind
	node benches/instructions.mjs

# A node with 20,000 sockets has as many open files, as do its clients. If the limit is lower, there are fewer sockets.
bench-scale: build ## attacks beside calls, a full node in trouble, many nodes: 40 minutes, written into docs/operations/scale.md
	ulimit -n 65536 2>/dev/null || ulimit -n $$(ulimit -Hn); cargo bench --locked --bench scale

bench-traces: build ## what traces cost: takes 10 minutes, Redis and valgrind
	node benches/traces.mjs

test: test-setup ## all tests, about 14 minutes: a line for each level, failures in full, the rest in target/test.log
	@node scripts/test.mjs

test-setup: ## install what the tests need
	@scripts/test-setup.sh

test-rust: ## unit and property tests of the server
	cargo test --locked

test-server: # the debug binary that the clients below are run against
	cargo build --locked

test-docs test-clients test-api test-cluster test-browser test-deploy types: export SWITCHBOARD_BIN ?= $(CURDIR)/target/debug/switchboard

test-docs: test-setup test-server ## the documentation: links, names, commands, language
	$(NODE_TEST) tests/docs/*.test.mjs

test-clients: test-setup test-server ## socket.io-client, raw websockets and python-socketio against the server
	$(NODE_TEST) tests/clients/*.test.mjs
	TEST_POSTGRES=1 $(NODE_TEST) $(addprefix tests/clients/,$(HISTORY_STORIES:=.test.mjs))
	timeout --foreground 300 tests/.venv/bin/python tests/clients/python_client.py

test-api: test-setup test-server ## requests generated from /openapi.json, valid and invalid, against the server
	timeout --foreground 300 tests/.venv/bin/python tests/api/run.py

test-cluster: test-setup test-server ## the same stories on several nodes and a Redis; faults, costs, restarts
	for nodes in $(CLUSTER_NODES); do \
		TEST_NODES=$$nodes $(NODE_TEST) $(addprefix tests/clients/,$(CLUSTER_STORIES:=.test.mjs)) || exit 1; \
	done
	TEST_NODES=3 TEST_POSTGRES=1 $(NODE_TEST) $(addprefix tests/clients/,$(HISTORY_STORIES:=.test.mjs))
	$(NODE_TEST) tests/cluster/*.test.mjs tests/chaos/*.test.mjs

test-browser: test-setup test-server ## two pages in headless Chromium call each other
	$(BROWSER_TEST) tests/browser/*.test.mjs

test-deploy: test-setup test-server ## deploy/ and k8s/: valid, agreeing with each other and with the binary
	$(NODE_TEST) tests/deploy/*.test.mjs

sim: ## whole clusters simulated: 20,000 seeds, or RUNS=100000, or SEED=42 again
	$(if $(SEED),SIM_SEED=$(SEED),SIM_RUNS=$(or $(RUNS),20000)) cargo test --locked --profile sim --test sim many -- --nocapture

.PHONY: chaos
chaos: test-setup build ## real faults under hundreds of clients, ROUNDS times each; the table in docs/operations/reliability.md
	SWITCHBOARD_BIN=$(CURDIR)/target/release/switchboard node tests/chaos/run.mjs

.PHONY: soak
soak: test-setup build ## steady churn for HOURS (1, or a part): memory, files, Redis' keys, Postgres' connections stay flat
	SWITCHBOARD_BIN=$(CURDIR)/target/release/switchboard HOURS=$(or $(HOURS),1) node tests/soak/run.mjs

.PHONY: image image-check sbom checkov
image: ## the image switchboard:VERSION, by docker or buildah; ARCH=arm64 for another architecture; see scripts/image.sh
	scripts/image.sh $(ARCH)

image-check: test-setup image ## build the image and run it as production does, by docker or podman
	$(if $(ARCH),ARCH=$(ARCH)) $(NODE_TEST) tests/image/*.test.mjs

sbom: ## the crates in the binary, in CycloneDX's format, into target/sbom/
	scripts/sbom.sh $(TARGET)

checkov: test-setup ## checkov over k8s/, the chart and the Dockerfile; what it skips and why is in .checkov.yaml
	@command -v checkov >/dev/null || { echo "checkov is missing: pip install checkov==3.3.30"; exit 1; }
	rm -rf target/checkov && mkdir -p target/checkov
	for overlay in base overlays/dev overlays/production; do \
		tests/.venv/bin/kubectl kustomize k8s/$$overlay >target/checkov/$$(basename $$overlay).yaml || exit 1; \
	done
	tests/.helm/helm template switchboard deploy/helm/switchboard --namespace switchboard \
		--values deploy/helm/switchboard/ci/production-values.yaml >target/checkov/chart.yaml
	cp deploy/Dockerfile target/checkov/
	checkov --config-file .checkov.yaml --directory target/checkov

.PHONY: upgrade-test
upgrade-test: test-setup test-server ## the last release and this build side by side, forth and back under calls; builds the former once
	OLD_SWITCHBOARD_BIN=$$(scripts/old-binary.sh) && export OLD_SWITCHBOARD_BIN && \
		SWITCHBOARD_BIN=$(CURDIR)/target/debug/switchboard $(NODE_TEST) tests/upgrade/*.test.mjs

types: test-setup test-server ## write web/protocol.d.ts anew, after a change of the protocol or the HTTP API
	node scripts/types.mjs

.PHONY: settings
settings: ## write the tables of docs/reference/settings.md anew, after a change of the settings
	WRITE_SETTINGS=1 cargo test --locked --test suite settings

deny: ## licences, duplicates and sources of all crates, by cargo-deny
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --locked check bans licenses sources

# libFuzzer needs coverage, which a stable toolchain gives, and no sanitizer, which it does not: the code is safe Rust.
fuzz: ## external input, mutated by a fuzzer; FUZZ_SECONDS for each kind, 300 by default
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cargo fuzz build --sanitizer none
	for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/found/$$target && cargo fuzz run --sanitizer none $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=5 -max_len=8192 -rss_limit_mb=2048 || exit 1; \
	done

abuse: test-setup build ## attacks beside calls that go on: memory and latency, written into docs/operations/security.md
	SWITCHBOARD_BIN=$(CURDIR)/target/release/switchboard node tests/abuse/run.mjs
