# shellcheck shell=bash
# What gpu_host.sh and tpu_vm.sh share; sourced by them. They define EXTRA, own_help, own_option, create, delete,
# on_host (a command on the VM) and copy (files to the VM's folder).

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034 # the two scripts copy to it
FOLDER=jaxinfer-deploy # in the home directory there
NAME=''
WHERE=()
DRY=no
PORT=8000
SERVE=()

usage() {
    cat <<END
usage: ${0##*/} COMMAND --name NAME --zone ZONE [--project PROJECT] [OPTION ...] [-- SERVE-OPTION ...]

  create    makes the VM
  install   builds the package here and installs it there, with a systemd unit
  serve     starts, or starts again, \`jaxinfer serve\` with what stands behind --, and waits until it is ready
  health    tells its state; exits with 1 unless it is ready
  logs      follows its log
  stop      drains it and stops it
  delete    removes the VM and its disk

  --dry-run             shows the commands and runs none
  --port N              of the HTTP server there, for serve and health (default: $PORT)
END
    own_help
}

fail() {
    printf '%s: error: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

run() {
    if [ "$DRY" = yes ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

quoted() {
    local words=''
    [ $# = 0 ] || words=$(printf ' %q' "$@")
    printf '%s' "$words"
}

install_there() {
    local version dist
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/pyproject.toml")
    dist=$ROOT/dist/deploy
    run python3 -m pip wheel --quiet --no-deps --wheel-dir "$dist" "$ROOT"
    on_host "mkdir -p $FOLDER"
    copy "$dist/jaxinfer-$version-py3-none-any.whl" "$ROOT/constraints.txt" "$ROOT/deploy/cloud/on_host.sh" \
        "$ROOT/deploy/systemd/jaxinfer.service" "$ROOT/deploy/systemd/jaxinfer.env"
    on_host "bash $FOLDER/on_host.sh install $EXTRA"
}

main() {
    case ${1:-} in
        -h | --help) usage && exit 0 ;;
        create | install | serve | health | logs | stop | delete) local command=$1 ;;
        *) usage >&2 && fail "the command is '${1:-}'; it must be create, install, serve, health, logs, stop or delete" ;;
    esac
    shift
    local zone='' project=''
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) DRY=yes && shift && continue ;;
            --) shift && SERVE=("$@") && break ;;
            -*) [ $# -gt 1 ] || fail "$1 needs a value" ;;
            *) fail "'$1' is no option; what goes to jaxinfer serve stands behind --" ;;
        esac
        case $1 in
            --name) NAME=$2 ;;
            --zone) zone=$2 ;;
            --project) project=$2 ;;
            --port) PORT=$2 ;;
            *) own_option "$1" "$2" || fail "$1 is no option of ${0##*/}" ;;
        esac
        shift 2
    done
    [ -n "$NAME" ] || fail "--name is missing; it names the VM"
    [ -n "$zone" ] || fail "--zone is missing; it says where the VM is"
    case $PORT in '' | *[!0-9]*) fail "--port is '$PORT'; it must be a number" ;; esac
    WHERE=(--zone "$zone")
    [ -z "$project" ] || WHERE+=(--project "$project")
    case $command in
        create) create ;;
        install) install_there ;;
        serve) on_host "bash $FOLDER/on_host.sh serve $PORT$(quoted "${SERVE[@]}")" ;;
        health) on_host "bash $FOLDER/on_host.sh health $PORT" ;;
        logs) on_host "bash $FOLDER/on_host.sh logs" ;;
        stop) on_host "bash $FOLDER/on_host.sh stop" ;;
        delete) delete ;;
    esac
}
