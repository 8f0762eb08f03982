#!/usr/bin/env bash
# The main job on one machine, without Docker: builds the server, makes a virtual environment for the client, runs both in this
# terminal, and exits with the truth. Ctrl-C ends both.
#
#   ./run.sh [COUNT] [OPTION...]      COUNT messages, 10 by default; options are those of `ackstream demo`
#
# The client takes its options from the environment, for example: ACKSTREAM_CLIENT_DROP_RATE=0.3 ./run.sh 5
# Its seed is fixed here, so that the second message of every run shows a retry; ACKSTREAM_CLIENT_SEED sets another.
set -eu
case ${1:-} in -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/.venv
requirements=$here/python-client/requirements.txt

say() { printf '%s\n' "$*" >&2; }

# What is missing is named all at once, with the way to get it.
missing=0
lacks() {
  say "run.sh: $1 is missing. $2"
  missing=1
}

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

command -v cargo >/dev/null 2>&1 || lacks "Rust (cargo)" "Install it from https://rustup.rs"
command -v cc >/dev/null 2>&1 || lacks "a C compiler (cc)" "On Debian or Ubuntu: apt-get install gcc libc6-dev; on macOS: xcode-select --install"
if python=$(find_python); then
  "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || lacks "Python's venv module" "On Debian or Ubuntu: apt-get install python3-venv"
else
  lacks "Python 3.11 or newer" "Install it from https://www.python.org or with your system's packages; PYTHON=/path/to/python names one"
fi
[ "$missing" = 0 ] || exit 69

if [ ! -x "$venv/bin/python" ] || ! cmp -s "$requirements" "$venv/requirements.txt"; then
  say "run.sh: installing what the client needs"
  "$python" -m venv --clear "$venv"
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install --quiet --require-hashes -r "$requirements"
  cp "$requirements" "$venv/requirements.txt"
fi
(cd "$here" && cargo build --release --locked --bin ackstream)
"$venv/bin/python" "$here/python-client/generate_protos.py" >/dev/null

server=
client=
stopping=
# shellcheck disable=SC2329 # the trap below calls it
stop() {
  trap '' INT TERM HUP
  stopping=1
  [ -z "$client" ] || kill -TERM "$client" 2>/dev/null || true
  [ -z "$server" ] || kill -TERM "$server" 2>/dev/null || true
}
trap stop INT TERM HUP
running() { kill -0 "$1" 2>/dev/null; }

# Each in a process group of its own: a Ctrl-C reaches this script alone, which then asks each of them once. That is for these two
# only, or the terminal would send its Ctrl-C to each `sleep` below.
set -m
"${CARGO_TARGET_DIR:-$here/target}/release/ackstream" demo "$@" &
server=$!
set +m
sleep 0.2 || true # a server that cannot start has ended by then; the client must not find another one on its port
server_code=0
if ! running "$server"; then
  wait "$server" || server_code=$?
  exit "$server_code"
fi
set -m
(cd "$here/python-client" && ACKSTREAM_CLIENT_SEED=${ACKSTREAM_CLIENT_SEED:-5} exec "$venv/bin/python" client.py) &
client=$!
set +m

# Until one has ended. A client ends last, by itself, unless the server failed; a server whose client has ended would wait for another.
# (bash 3.2 of macOS has no `wait -n`.)
while running "$server" && running "$client"; do sleep 0.1 || true; done
client_code=0
if running "$client"; then
  wait "$server" || server_code=$?
  [ "$server_code" = 0 ] || kill -TERM "$client" 2>/dev/null || true
  wait "$client" || client_code=$?
  [ "$server_code" = 0 ] || exit "$server_code"
else
  wait "$client" || client_code=$?
  # Asked twice it would not wait for what is outstanding.
  [ -n "$stopping" ] || kill -TERM "$server" 2>/dev/null || true
  wait "$server" || server_code=$?
fi
[ "$client_code" = 0 ] || exit "$client_code"
exit "$server_code"
