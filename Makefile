# Everything a newcomer needs is `make demo` and `make test`; both set themselves up. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# One thread per process by default: on few cores a second one costs more in stalls than it gains.
export OMP_NUM_THREADS ?= 1
# Tests at a time. Each process of them holds a model.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

setup: $(READY) ## Install everything into .venv

$(READY): requirements.lock requirements-triton.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -c 'import triton' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -r requirements-triton.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(READY) ## Start the server on the embedded model and hold a conversation
	$(VENV)/bin/firstword demo

serve: $(READY) ## Start the server (configured by FIRSTWORD_* and firstword.toml)
	$(VENV)/bin/firstword serve

talk: $(READY) ## Talk to a running server
	$(VENV)/bin/firstword talk

top: $(READY) ## Show what a running server does (started with OTEL_METRICS_EXPORTER=prometheus)
	$(VENV)/bin/firstword top

observability: $(READY) ## Make the rules, alerts and dashboards of deploy/objectives.toml
	$(PY) -m deploy.generate

trace-picture: $(READY) ## Draw the picture of a trace in docs/observability.md, from one that is really received
	$(PY) -m scripts.trace_picture docs/trace.svg

test: $(READY) ## Run all tests, two at a time (JOBS=1: one after the other)
	$(PY) -m pytest -n $(JOBS) --dist worksteal

# LiveKit's packages are 400 MB that nothing else needs, and are not of requirements.lock: an environment of their own, and
# not part of `make test`. What both have is of the same version; the service that the tests speak to runs in .venv.
LIVEKIT := build/livekit
$(LIVEKIT)/.ready: requirements.lock pyproject.toml
	test -x $(LIVEKIT)/bin/python || $(PYTHON) -m venv $(LIVEKIT)
	grep -E '^(grpcio|protobuf|googleapis-common-protos|pytest|pytest-asyncio|pytest-timeout)==' requirements.lock \
	  >$(LIVEKIT)/common.txt
	$(LIVEKIT)/bin/python -m pip install --quiet --disable-pip-version-check -r $(LIVEKIT)/common.txt \
	  --editable '.[livekit]'
	touch $@

test-livekit: $(READY) $(LIVEKIT)/.ready ## The LiveKit plug-in's tests: real agents, a real service (400 MB of packages)
	FIRSTWORD_SERVICE_PYTHON=$(CURDIR)/$(PY) $(LIVEKIT)/bin/python -m pytest tests/livekit

lint: $(READY) ## ruff, mypy --strict, stale stubs, and buf where npm is there
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m deploy.generate --check
	$(MAKE) --no-print-directory proto-check

test-equality: $(READY) ## The whole equality suite: with transformers, and with and without every drafter
	$(PY) -m tests.equality

PROMTOOL := build/promtool
# Debian's package of Prometheus has it; where none of the lists of packages is there yet, they are fetched first.
DEBIAN := apt-get --quiet --option Acquire::Retries=0 --option Acquire::http::Timeout=20
promtool: ## Fetch Prometheus' own tool into build/, where there is none
	command -v promtool >/dev/null || test -x $(PROMTOOL)/usr/bin/promtool || (mkdir -p $(PROMTOOL) && cd $(PROMTOOL) \
	  && ($(DEBIAN) download prometheus || ($(DEBIAN) update && $(DEBIAN) download prometheus)) \
	  && dpkg --extract prometheus_*.deb . && rm prometheus_*.deb)

test-alerts: $(READY) promtool ## The alerts, the Helm chart's too, as promtool evaluates them
	PATH="$(CURDIR)/$(PROMTOOL)/usr/bin:$$PATH" $(PY) -m pytest tests/deploy/test_alerts.py tests/k8s/test_rules.py

soak: $(READY) ## Hold calls while servers, the store and lines die: nothing lost, nothing said twice (SOAK="--kills 30 ...")
	$(PY) -m tests.soak $(SOAK)

rolling: $(READY) ## This tree's service takes another revision's place, and back, while calls go on (BASE=REVISION)
	$(PY) -m tests.rolling $(if $(BASE),--base $(BASE)) $(ROLLING)

fuzz: $(READY) ## Random clients against real servers: 100,000 scripts, kept and gone on with (FUZZ="--jobs 2 --seeds 0:2000")
	$(PY) -m tests.fuzz $(FUZZ)

model: $(READY) ## Make the embedded model and its drafters from nothing (two hours on two cores, resumable)
	$(PY) -m training.make_model

second-style: $(READY) ## Train a drafter for another agent's conversations: acceptance before and after (10 minutes)
	$(PY) -m training.dialogues.courier --calls 3000 --out build/courier.jsonl
	$(PY) -m training.eagle3 --target models/receptionist --conversations build/courier.jsonl \
	  --init models/receptionist/eagle3 --out build/courier-head --minutes 8 --ranks 2

eval: $(READY) ## The embedded model's tool calls on calls it never saw
	$(PY) -m evals.tool_calls

eval-constrained: $(READY) ## 2,000 tool calls held to schemas that the model never saw, with every drafter
	$(PY) -m evals.constrained_calls

bench-acceptance: $(READY) ## Tokens per forward and acceptance by position, tree, temperature and kind of text
	$(PY) -m bench.acceptance

bench-first-token: $(READY) ## Time to first token over gRPC against the length of the call, beside transformers
	$(PY) -m bench.first_token

bench-decode: $(READY) ## Seconds per token: plain, drafted, transformers; embedded and grown model
	$(PY) -m bench.decode

bench-drafters: $(READY) ## Every way of drafting, side by side: acceptance, cost, speed (40 minutes)
	$(PY) -m bench.drafters

bench-turns: $(READY) ## Recorded calls over gRPC: first token and clause, by what was told ahead of the final (40 minutes)
	$(PY) -m bench.turns

bench-load: $(READY) ## Many callers at once: what each contender carries, in parts (3 hours 10 at most; LOAD="--part alone")
	$(PY) -m bench.load $(LOAD)

bench-batching: $(READY) ## Replies that share steps: tokens a second by drafting and load (50 minutes; BATCHING=--resume)
	$(PY) -m bench.batching $(BATCHING)

bench-hibernation: $(READY) ## Calls that were quiet, ten pools of them; memory over 5,000 (35 minutes; HIBERNATION=--resume)
	$(PY) -m bench.hibernation $(HIBERNATION)

bench-prefixes: $(READY) ## What sharing the beginnings of calls saves, and what it costs
	$(PY) -m bench.prefixes

bench-overhead: $(READY) ## What Redis and telemetry add to a first token: 2,000 paired turns, with both and with neither
	$(PY) -m bench.overhead

bench-suffix: $(READY) ## Cost per token of self-speculation, from 1,000 to 100,000 tokens
	$(PY) -m bench.suffix

bench-gpu: $(READY) ## The engine on a GPU, stage by stage (under 10 minutes; docs/gpu.md)
	$(PY) -m bench.gpu

picture: $(READY) ## Draw the README's picture of a live conversation
	$(VENV)/bin/firstword demo --svg docs/conversation.svg

clean: ## Remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

proto: $(READY) ## Generate the stubs in firstword/v1 from proto/
	$(PY) scripts/gen_proto.py

chart: $(READY) ## Make the Helm chart's schema and golden manifests anew; the diff says what a change does
	$(PY) -m scripts.gen_chart

proto-release: $(READY) ## Hold later changes of the contract to what it is now
	$(PY) scripts/gen_proto.py --release

# buf comes with npm and is left out where there is none. The breaking check compares with the contract that was released
# last (the tests do so too, without buf), and not with a commit: CI has but one.
RELEASED := tests/proto/released.binpb
BUF := npx --yes @bufbuild/buf@1.75.0
proto-check: $(READY)
	$(PY) scripts/gen_proto.py --check
	@if command -v npx >/dev/null; then $(BUF) lint && $(BUF) format --diff --exit-code && \
	  $(BUF) breaking --against $(RELEASED); \
	else echo 'no npm: buf not run'; fi
