#!/usr/bin/env bash
# Runs on the machine that serves; gpu_host.sh and tpu_vm.sh bring it there, and by hand it works on any Debian or Ubuntu
# with systemd: on_host.sh install EXTRA | serve PORT [OPTION ...] | health PORT | logs | stop
# Beside it lie the wheel, constraints.txt, jaxinfer.service and jaxinfer.env. PREFIX: another root, for tests.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PREFIX=${PREFIX:-}
READY_SECONDS=${READY_SECONDS:-1800} # loading and compiling a large model takes minutes

fail() {
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

install_package() {
    local extra=$1 python wheels wheel
    wheels=("$HERE"/jaxinfer-*.whl)
    wheel=${wheels[-1]}
    [ -f "$wheel" ] || fail "no wheel of jaxinfer in $HERE"
    if ! python=$(find_python); then
        sudo apt-get update -q
        sudo apt-get install -y -q python3.11 python3.11-venv # Ubuntu 22.04 has it in universe, Debian 12 as its own
        python=$(find_python) || fail "no Python 3.11 or newer, and none could be installed"
    fi
    sudo "$python" -m venv "$PREFIX/opt/jaxinfer"
    sudo "$PREFIX/opt/jaxinfer/bin/python" -m pip install --quiet --constraint "$HERE/constraints.txt" "${wheel}[$extra,otel]"
    sudo install -D -m 644 "$HERE/jaxinfer.service" "$PREFIX/etc/systemd/system/jaxinfer.service"
    if [ ! -e "$PREFIX/etc/jaxinfer/jaxinfer.env" ]; then
        sudo install -D -m 600 "$HERE/jaxinfer.env" "$PREFIX/etc/jaxinfer/jaxinfer.env"
    fi
    sudo systemctl daemon-reload
    sudo systemctl enable --quiet jaxinfer
    printf 'JAX sees: '
    "$PREFIX/opt/jaxinfer/bin/python" -c 'import jax; print(jax.devices())'
}

# serve PORT [OPTION ...]: systemd splits the line at spaces, so an option has none, nor quotes, nor what it expands.
serve() {
    local port=$1 option
    shift
    for option in "$@"; do
        case $option in
            *[!-A-Za-z0-9_./:=,@+]*) fail "option $option has characters that the unit's line cannot carry" ;;
        esac
    done
    [ $# = 0 ] || printf 'JAXINFER_OPTIONS="%s"\n' "$*" | sudo tee "$PREFIX/etc/jaxinfer/jaxinfer.env" >/dev/null
    sudo systemctl restart jaxinfer
    local waited=0
    until curl -fsS --max-time 5 -o /dev/null "http://127.0.0.1:$port/ready" 2>/dev/null; do
        # Between two starts it is neither active nor failed.
        if systemctl is-failed --quiet jaxinfer; then
            sudo journalctl -u jaxinfer -n 50 --no-pager
            fail "the server ended; its log is above"
        fi
        [ "$waited" -lt "$READY_SECONDS" ] || fail "not ready after $READY_SECONDS s: see on_host.sh logs"
        sleep 2
        waited=$((waited + 2))
    done
    health "$port"
}

health() {
    local port=$1 state
    state=$(curl -sS --max-time 5 "http://127.0.0.1:$port/ready") || fail "nothing answers on port $port"
    printf '%s\n' "$state"
    [ "$state" = '{"status":"ready"}' ]
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
    install) install_package "${1:?the extra of the package is missing: cuda13, cuda12 or tpu}" ;;
    serve) serve "${@:?the port is missing}" ;;
    health) health "${1:?the port is missing}" ;;
    logs) sudo journalctl -u jaxinfer -n 200 -f ;;
    stop) sudo systemctl stop jaxinfer ;; # drains first
    *) fail "the command is '$command'; it must be install, serve, health, logs or stop" ;;
esac
