# Every target says what it does: make help. A fresh Debian machine needs only Go and make.

# Go is often installed where only the installer's shell looks; sudo and make find it here too.
export PATH := $(PATH):/usr/local/go/bin
GO      ?= go
SUDO    ?= $(shell [ "$$(id -u)" = 0 ] || echo sudo)
TOOL     = $(GO) tool -modfile=tools/go.mod
# Hand-written Go: the generated files are bpf2go's own style.
SOURCES  = $(shell find cmd internal test -name '*.go' ! -name 'bpf_*_bpfel.go')

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## make bin/picosnitch: one static file
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/picosnitch ./cmd/picosnitch
	@chmod 755 bin/picosnitch

.PHONY: run
run: build ## build, and show what moves on this machine, live, until Ctrl-C
	$(SUDO) env PICOSNITCH_LIVE=1 $(CURDIR)/bin/picosnitch start-no-daemon

.PHONY: test
test: ## test everything; installs what it needs on Debian, and uses sudo where root is needed
	test/run

.PHONY: test-unprivileged
test-unprivileged: ## test what needs no root: replay, config, command line, shape of the house
	test/run --unprivileged

.PHONY: coverage
coverage: ## play every scenario here and in guests, three times, and write docs/coverage.md
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/coverage/cover page

.PHONY: kernels
kernels: ## run on the kernels of distributions in emulated machines, and write docs/kernel-support.md (some hours)
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/kernels -docs docs

.PHONY: kernels-fast
kernels-fast: ## load and a dozen scenarios on each of those kernels (about five minutes)
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/kernels -fast -arm64 ""

.PHONY: compare
compare: ## run other monitors (nethogs, bpftrace, tcplife) through the same scenarios, and write docs/comparison.md
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/compare

.PHONY: bench
bench: build ## measure the cost of the monitor: time per operation with it on over off
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/bench

.PHONY: bench-store
bench-store: ## measure the database with a year of data: 10 million rows; needs 2 GB in the temporary folder and about eight minutes
	$(GO) run ./test/bench/store

.PHONY: bench-remote
bench-remote: ## measure the copy off the machine: rate, sizes, memory and questions, against PostgreSQL and MariaDB servers of its own
	test/deps.sh postgresql mariadb-server-core mariadb-client-core
	$(GO) run ./test/bench/remote

.PHONY: bench-identity
bench-identity: ## measure how programs are hashed: 2,000 short-lived ones, 100,000 distinct ones, 1 GB, and 60 s of races
	$(SUDO) env PATH="$(PATH)" $(GO) test ./internal/sensor ./internal/sensor/digest -run '^$$' -bench 'Identity|HashSpeed' -benchtime 1x -timeout 20m
	$(SUDO) env PATH="$(PATH)" PICOSNITCH_RACE_TIME=60s $(GO) test ./internal/sensor -run TestRaces -count=1 -v

.PHONY: lint
lint: ## go vet, staticcheck, gofumpt
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@bad=$$($(TOOL) gofumpt -l $(SOURCES)); [ -z "$$bad" ] || { echo "not gofumpt's format: make fmt"; echo "$$bad"; exit 1; }

.PHONY: fmt
fmt: ## format the Go files
	$(TOOL) gofumpt -w $(SOURCES)

.PHONY: generate
generate: ## make the BPF objects again (needs clang, llvm and libbpf-dev)
	test/deps.sh clang llvm libbpf-dev
	$(GO) generate ./internal/sensor/kernel

.PHONY: verifier
verifier: ## count again what this kernel's verifier looks at, and print what changed
	$(SUDO) env PATH="$(PATH)" $(GO) test -count=1 -v -run TestVerifierBudget ./internal/sensor/kernel | $(GO) run ./test/verifier

.PHONY: verifier-kernels
verifier-kernels: ## the same on the kernels of distributions, in emulated machines (about a quarter of an hour)
	{ $(SUDO) env PATH="$(PATH)" $(GO) run ./test/kernels/one ./internal/sensor/kernel -test.v -test.run TestVerifierBudget; \
	$(SUDO) env PATH="$(PATH)" $(GO) run ./test/kernels/one -arch arm64 -kernels 6.1,6.12 -limit 20m ./internal/sensor/kernel -test.v -test.run TestVerifierBudget; } | $(GO) run ./test/verifier

.PHONY: drift
drift: generate ## fail if the committed BPF objects are not what the sources give
	git diff --exit-code -- internal/sensor/kernel

.PHONY: fuzz
fuzz: ## fuzz every parser of foreign input for 30 s each
	@for p in $$($(GO) list ./...); do \
		for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$($(GO) list -f '{{.Dir}}' $$p)"/*_test.go 2>/dev/null | cut -c6-); do \
			$(GO) test $$p -run xxx -fuzz "^$$f$$" -fuzztime 30s || exit 1; \
		done; \
	done

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
