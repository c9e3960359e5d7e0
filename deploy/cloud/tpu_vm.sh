#!/usr/bin/env bash
# A TPU VM with one host on Google Cloud, from here: tpu_vm.sh COMMAND --name NAME --zone ZONE [OPTION ...]
# COMMAND and the options: see tpu_vm.sh --help. --dry-run shows the commands, ready to be pasted, and runs none.
set -euo pipefail

EXTRA=tpu
ACCELERATOR=v5litepod-8
RUNTIME=v2-alpha-tpuv5-lite

own_help() {
    cat <<END
  --accelerator-type T  for create; a slice of one host (default: $ACCELERATOR)
  --version NAME        for create; the TPU's software, which depends on its generation (default: $RUNTIME)
END
}

own_option() {
    case $1 in
        --accelerator-type) ACCELERATOR=$2 ;;
        --version) RUNTIME=$2 ;;
        *) return 1 ;;
    esac
}

create() {
    run gcloud compute tpus tpu-vm create "$NAME" "${WHERE[@]}" --accelerator-type "$ACCELERATOR" --version "$RUNTIME"
}

delete() { run gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" --quiet; }
on_host() { run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker 0 --command "$1"; }
copy() { run gcloud compute tpus tpu-vm scp "${WHERE[@]}" --worker 0 "$@" "$NAME:$FOLDER/"; }

# shellcheck source=deploy/cloud/remote.sh
. "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
main "$@"
