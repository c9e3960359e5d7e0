#!/usr/bin/env bash
# A VM with NVIDIA GPUs on Google Cloud, from here: gpu_host.sh COMMAND --name NAME --zone ZONE [OPTION ...]
# COMMAND and the options: see gpu_host.sh --help. --dry-run shows the commands, ready to be pasted, and runs none.
set -euo pipefail

EXTRA=cuda13
MACHINE=g2-standard-8
IMAGE_FAMILY=common-cu129-ubuntu-2204-nvidia-580
DISK_GB=200

own_help() {
    cat <<END
  --machine-type TYPE   for create (default: $MACHINE, with one L4)
  --image-family NAME   for create, of deeplearning-platform-release: it has NVIDIA's driver (default: $IMAGE_FAMILY)
  --extra NAME          of the package: cuda13 or cuda12, as the driver can (default: $EXTRA)
END
}

own_option() {
    case $1 in
        --machine-type) MACHINE=$2 ;;
        --image-family) IMAGE_FAMILY=$2 ;;
        --extra) EXTRA=$2 ;;
        *) return 1 ;;
    esac
}

create() {
    run gcloud compute instances create "$NAME" "${WHERE[@]}" --machine-type "$MACHINE" \
        --image-project deeplearning-platform-release --image-family "$IMAGE_FAMILY" \
        --boot-disk-size "${DISK_GB}GB" --maintenance-policy TERMINATE --metadata install-nvidia-driver=True
}

delete() { run gcloud compute instances delete "$NAME" "${WHERE[@]}" --quiet; }
on_host() { run gcloud compute ssh "$NAME" "${WHERE[@]}" --command "$1"; }
copy() { run gcloud compute scp "${WHERE[@]}" "$@" "$NAME:$FOLDER/"; }

# shellcheck source=deploy/cloud/remote.sh
. "$(dirname "${BASH_SOURCE[0]}")/remote.sh"
main "$@"
