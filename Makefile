# Two commands: `make demo` and `make test`. Both install what they need (Debian 12, root) and do nothing twice.
SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
export DATA_DIR ?= /var/lib/ferrovirt

.PHONY: demo test build packages clean-demo help

help: ## Show this
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: packages ## From nothing to a running guest on this machine
	@scripts/demo

test: ## All tests, with real guests here and on a cluster of two nodes
	@scripts/packages --test
	@cargo xtask ci

build: ## The release executables: target/release/{ferrovirt,virt-launcher,virtctl}
	@cargo build --release --locked -p ferrovirt -p virt-launcher -p virtctl

packages: ## The Debian packages that building and running need
	@scripts/packages

clean-demo: ## Stop the demo's VM and control plane, and remove their state
	@target/release/ferrovirt down --vms --purge --yes --data-dir $(DATA_DIR)
