"""Fails unless a wheel holds the five packages and their data, and nothing else."""

from __future__ import annotations

import sys
import zipfile

PACKAGES = ("jaxinfer", "pallas_kernels", "checkpoints", "serving", "protos")
REQUIRED = (
    "jaxinfer/cli.py",
    "pallas_kernels/paged_attention/xla.py",
    *(f"pallas_kernels/native_cpu/{name}" for name in ("kernels.cc", "attention.h", "dots.h", "matmul.h")),
    "checkpoints/demo/jaxinfer_config.json",
    "checkpoints/demo/conversion_report.json",
    "protos/jaxinfer/v1/inference.proto",
    "protos/open_inference/grpc_service.proto",
    "serving/server.py",
    *(f"serving/http/static/{name}" for name in ("index.html", "page.css", "main.js", "icon.svg")),
)


def main(path: str) -> int:
    names = zipfile.ZipFile(path).namelist()
    metadata = {n for n in names if n.split("/")[0].endswith(".dist-info")}
    strangers = [n for n in names if n not in metadata and n.split("/")[0] not in PACKAGES]
    missing = [n for n in REQUIRED if n not in names]
    if strangers or missing:
        print(f"{path}: unexpected {strangers[:10]}, missing {missing}", file=sys.stderr)
        return 1
    print(f"{len(names)} files in the wheel, all of them in {', '.join(PACKAGES)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
