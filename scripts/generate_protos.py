"""Regenerates the gRPC stubs in protos/ from the .proto files. Needs grpcio-tools 1.81.1 (see protos/README.md).

python scripts/generate_protos.py            # rewrites them in place
python scripts/generate_protos.py --out DIR  # writes them below DIR instead
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS_VERSION = "1.81.1"


def generate(root: Path, out: Path) -> list[Path]:
    """Generates from the protos/**/*.proto of `root` below `out`; returns the written files, or raises RuntimeError."""
    import grpc_tools
    from grpc_tools import protoc

    sources = sorted(path.relative_to(root).as_posix() for path in (root / "protos").rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    out.mkdir(parents=True, exist_ok=True)
    code = protoc.main(
        [
            "protoc",
            f"-I{root}",  # the root, not protos/: the stubs must import protos.jaxinfer.v1
            f"-I{well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *(str(root / source) for source in sources),
        ]
    )
    if code != 0:
        raise RuntimeError(f"protoc ended with code {code}")
    names = [source.removesuffix(".proto") for source in sources]
    return [out / f"{name}{suffix}" for name in names for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Regenerate the gRPC stubs.")
    parser.add_argument("--out", type=Path, default=ROOT, help="root folder to write below (default: the repository)")
    arguments = parser.parse_args()
    from importlib.metadata import version

    if version("grpcio-tools") != TOOLS_VERSION:
        print(f"grpcio-tools is {version('grpcio-tools')}; {TOOLS_VERSION} is needed", file=sys.stderr)
        return 1
    for path in generate(ROOT, arguments.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
