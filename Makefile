# Two targets do everything on a fresh machine: demo and test.
GO       ?= go
CACHE    ?= $(CURDIR)/.cache
FUZZTIME ?= 10s
ROUNDS   ?=

GOTESTSUM     = gotest.tools/gotestsum@v1.13.0
GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSION       = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: help build demo demo-openstack test tools lint race fuzz crash guests model soak bench bench-go bench-nbd bench-peers bench-s3 clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' Makefile | expand -t 16

build: ## the static binary bin/cairn
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/cairn ./cmd/cairn

demo: build ## the main job, end to end, on local folders
	scripts/demo.sh bin/cairn

demo-openstack: build ## an agent with the OpenStack Block Storage API, and what to try on it
	scripts/demo-openstack.sh bin/cairn

tools: ## the Debian packages, the S3 servers, the guests' kernel and the newer NBD programs and qemu that the tests drive
	@scripts/tools.sh

# Begun first, so that the others run beside it and not before it.
LONGEST = ./internal/e2e

test: tools build ## all tests; what is skipped is named at the end
	CAIRN_ROUNDS=$(ROUNDS) $(GO) run $(GOTESTSUM) --format pkgname-and-test-fails -- -count=1 -timeout 40m $(LONGEST) ./...

# One step after the other, at each store call in turn, or one large input: nothing for the race detector that other tests have not.
IN_TURN = ^Test(.*KilledAtAnyCall|(GiveUp|Prune|Replace|Rotate)Killed|CrashAtEveryCall|PruneAgainst|(Replace|Writer)AgainstPrune|RetentionModel|IndexOf10TiB|CheckInParts|NextBackupHeals|CompactMemory|MadeUpMembershipTakesNoMemory|LargestMembership)$$

# SQLite is C made Go, on memory outside Go's heap, which the race detector does not watch: there it would only cost time.
# Whoever calls it is watched, its driver too.
NOT_WATCHED = $(foreach p,modernc.org/sqlite/lib modernc.org/libc,-gcflags=$(p)='-race=false -d=checkptr=0')

race: ## the tests under the race detector, without the long ones
	$(GO) test -race $(NOT_WATCHED) -short -count=1 -timeout 30m -skip '$(IN_TURN)' $$($(GO) list ./... | grep -v '/internal/protocol$$') # the model has no goroutines

lint: $(CACHE)/bin/golangci-lint ## vet, golangci-lint
	$(GO) vet ./...
	$(CACHE)/bin/golangci-lint run ./...

$(CACHE)/bin/golangci-lint: Makefile
	GOBIN=$(CACHE)/bin $(GO) install $(GOLANGCI_LINT)
	touch $@

fuzz: ## every fuzz target for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

crash: build ## a long kill -9 and power-loss campaign: make crash ROUNDS=5000
	CAIRN_ROUNDS=$(or $(ROUNDS),2000) $(GO) test -count=1 -timeout 0 -v -run '^Test(Kill|PowerLoss)$$' ./internal/e2e/

guests: ## guests under qemu: one that is backed up, one that is a host whose power fails again and again: make guests ROUNDS=100
	CAIRN_ROUNDS=$(or $(ROUNDS),20) $(GO) test -count=1 -timeout 0 -v -run '^TestGuest' ./internal/e2e/

model: ## up to 40 million states of each configuration of the protocol's model; takes gigabytes of memory
	CAIRN_ROUNDS=1 $(GO) test -count=1 -timeout 0 -v ./internal/protocol/

soak: ## three agents that back up, delete, prune and die at once, on folders and on S3 servers that die too: make soak MINUTES=10
	CAIRN_MINUTES=$(or $(MINUTES),10) $(GO) test -count=1 -timeout 0 -v -run TestSoak ./internal/e2e/

bench: bench-go bench-s3 bench-peers ## Go benchmarks, S3 servers beside folders, then the comparison with restic and borg

bench-go: ## benchmarks of the hot paths
	$(GO) test -run '^$$' -bench . -benchmem ./blockmap ./internal/volume ./internal/chunk ./internal/pack ./internal/manifest ./internal/repository ./agent ./internal/cinderapi

bench-s3: ## storing and reading through four local S3 servers, as a share of folders
	$(GO) test -run '^$$' -bench 'S3$$' -benchtime 5x ./internal/repository

bench-peers: build ## full, incrementals and restore beside restic and borg
	scripts/bench-peers.sh

bench-nbd: build ## the NBD server, with change tracking, beside nbdkit, qemu-nbd, nbd-server and go-nbd: make bench-nbd ROUNDS=5 SECONDS=1
	scripts/bench-nbd.py --cairn bin/cairn $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

clean: ## what the targets above made
	rm -rf bin $(CACHE)
