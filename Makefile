# What people and CI call. Everything that is built goes into one cache outside the repository, so that a fresh clone
# starts from what the last one built.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

export FERRETCD_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/ferretcd
export CARGO_TARGET_DIR ?= $(FERRETCD_CACHE)/target

CRATES := $(shell sed -n '/^.package/,/^$$/ s/^name = "\(.*\)"/\1/p' proto/Cargo.toml server/Cargo.toml server/*/Cargo.toml operator/Cargo.toml operator/*/Cargo.toml e2e/Cargo.toml fuzz/Cargo.toml power-cut/Cargo.toml xtask/Cargo.toml)
E2E = cargo run --quiet --package ferretcd-e2e --

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: ## Bring up a Kubernetes and show the whole product on it
	$(E2E) demo

.PHONY: demo-down
demo-down: ## Remove everything that the demo made, the cache excepted
	$(E2E) demo-down

.PHONY: test
test: test-local test-clients test-kubernetes ## Run everything: unit tests, real processes, clients, a real Kubernetes

.PHONY: test-local
test-local: tools ## Unit tests, and the server as real processes on loopback
	# Twice as many at a time as there are cores: most stories of real processes wait.
	RUST_TEST_THREADS=$$(( $$(nproc) * 2 )) cargo test --workspace --exclude ferretcd-e2e --no-fail-fast
	cargo test --package ferretcd-e2e --lib --bins

.PHONY: test-clients
test-clients: tools ## Programs in Go, Python, Rust and shell that use three members through other people's clients
	$(E2E) tools go-clients python-clients rust-clients
	# Named among all crates, so that these are those that are built already: a crate tested alone gets other features.
	cargo test --workspace --exclude ferretcd-e2e --test stories -- --ignored clients::

.PHONY: test-kubernetes
test-kubernetes: tools ## The operator and the whole story on the local Kubernetes
	$(E2E) test

.PHONY: test-long
test-long: tools long-simulation long-chaos long-partitions long-power-cuts long-differential long-control-plane long-watchers long-snapshot long-fuzz ## What takes hours: 100,000 simulated groups, 200 kill rounds, 200 rounds of cut wires, 200 power cuts on each engine, 50,000 random sequences, 10,000 Kubernetes objects, watchers for minutes, a snapshot of 1 GiB, a start with a million keys, each fuzz target for five; goes on where it was stopped

# Each of these keeps what it has done in a file and leaves that out the next time. The file begins with what the proof is
# about: its crates, the API and the dependencies. A commit that changes another crate or the docs keeps what was done.
define begun
mkdir -p $(FERRETCD_CACHE)/long; done=$(FERRETCD_CACHE)/long/$(1); \
of=$$(git rev-parse HEAD:server HEAD:proto HEAD:Cargo.lock $(2:%=HEAD:%) | sha1sum | cut -d' ' -f1); \
[ "$$(sed -n 1p $$done 2>/dev/null)" = "$$of" ] || echo "$$of" > $$done
endef
LONG = cargo test --quiet --profile long

.PHONY: long-simulation long-chaos long-partitions
long-simulation:
	@$(call begun,simulation); \
	for from in $$(seq 1 1000 99001); do \
	  grep -qx "$$from" $$done && continue; \
	  echo "seeds from $$from of 100000"; \
	  FERRETCD_SEED=$$from FERRETCD_SEEDS=1000 $(LONG) --package ferretcd-sim --test seeds; \
	  echo "$$from" >> $$done; \
	done; echo "100000 groups kept their promises"

long-chaos:
	@$(call begun,chaos); \
	for from in $$(seq 1 20 181); do \
	  grep -qx "$$from" $$done && continue; \
	  FERRETCD_SEED=$$from FERRETCD_ROUNDS=20 $(LONG) --package ferretcd --test stories chaos::; \
	  echo "$$from" >> $$done; \
	done; echo "200 kill rounds lost nothing"

# Installing takes up to 300 MiB more than writing did, however long the snapshot is (measured with 200, 400, 600 and 1000 MiB):
# what comes over the slow wire must be so long that half of it is more. One story after the other: each takes 9 GB of disk.
long-partitions:
	@$(call begun,partitions); \
	for from in $$(seq 1 20 181); do \
	  grep -qx "$$from" $$done && continue; \
	  FERRETCD_SEED=$$from FERRETCD_ROUNDS=20 $(LONG) --package ferretcd --test stories cut_at_random -- --nocapture; \
	  echo "$$from" >> $$done; \
	done; FERRETCD_SLOW_MIB=1000 $(LONG) --package ferretcd --test stories slow_wire -- --nocapture --test-threads=1; \
	echo "200 rounds of cut wires lost nothing"

.PHONY: long-differential long-power-cuts long-control-plane long-watchers long-snapshot long-fuzz
long-differential:
	@$(call begun,differential); \
	for from in $$(seq 1 1000 49001); do \
	  grep -qx "$$from" $$done && continue; \
	  echo "sequences from $$from of 50000"; \
	  FERRETCD_SEED=$$from FERRETCD_SEQUENCES=1000 FERRETCD_WORKERS=10 $(LONG) --package ferretcd --test stories differential::; \
	  echo "$$from" >> $$done; \
	done; echo "50000 sequences answered as by etcd"

long-power-cuts:
	@$(call begun,power-cuts,power-cut); \
	for from in $$(seq 1 10 391); do \
	  grep -qx "$$from" $$done && continue; \
	  FERRETCD_SEED=$$from FERRETCD_POWER_CUTS=10 $(LONG) --package ferretcd --test stories the_power_goes -- --nocapture; \
	  echo "$$from" >> $$done; \
	done; echo "200 rounds of power cuts on each engine lost nothing"

long-control-plane:
	@$(call begun,control-plane,e2e); \
	grep -qx control-plane $$done || { $(E2E) test-control-plane; echo control-plane >> $$done; }

long-watchers:
	FERRETCD_WATCH_ROUNDS=40 $(LONG) --package ferretcd --test stories watchers:: -- --nocapture

long-snapshot:
	FERRETCD_SNAPSHOT_MIB=1024 FERRETCD_START_KEYS=1000000 $(LONG) --package ferretcd --test stories large_snapshot:: -- --nocapture

# As many targets at a time as there are cores: each works by itself.
long-fuzz:
	@$(call begun,fuzz,operator fuzz); \
	fuzz="$(LONG) --workspace --exclude ferretcd-e2e --lib --bins --tests"; \
	targets=$$($$fuzz -- --list fuzz_ | sed -n 's/: test$$//p' | sort -u); \
	{ grep -vxFf $$done <<< "$$targets" || true; } | FERRETCD_FUZZ_SECONDS=300 xargs --no-run-if-empty -P "$$(nproc)" -I '{}' bash -euo pipefail -c \
	  "$$fuzz -- --exact '{}' --nocapture | grep 'answers at first' && echo '{}' >> $$done"; \
	echo "each of $$(wc -w <<< "$$targets") decoders was fuzzed for five minutes"

.PHONY: mutations
mutations: tools ## Break durability on purpose in every way that is listed, and see each noticed (hours; goes on where it was stopped)
	@$(call begun,mutations,e2e/mutations power-cut); FERRETCD_DONE=$$done e2e/mutate.sh; \
	echo "each of $$(ls e2e/mutations/*.patch | wc -l) mutations was noticed"

.PHONY: bench
bench: ## Measure real etcd and ours in turn, and print the ratios; BENCH="--rounds 1 --rows put" narrows it
	$(E2E) bench $(BENCH)

.PHONY: tools
tools: ## Build etcd, Kubernetes and the other tools into the cache
	$(E2E) tools

.PHONY: verify
verify: ## Check without writing: format, lints, generated files, each crate alone
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	$(E2E) tools helm
	HELM=$$(ls -d $(FERRETCD_CACHE)/bin/helm-*/helm | tail -1) cargo xtask generate --check
	$(MAKE) --no-print-directory check-alone

.PHONY: check-alone
check-alone: ## Check each crate by itself, so that no feature of a neighbour hides a missing one
	@for crate in $(CRATES); do echo "check $$crate"; cargo check --quiet --package $$crate; done

.PHONY: fix
fix: ## Format and apply what the lints can fix
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

.PHONY: generate
generate: ## Write the CRDs and manifests that come from code
	$(E2E) tools helm
	HELM=$$(ls -d $(FERRETCD_CACHE)/bin/helm-*/helm | tail -1) cargo xtask generate
