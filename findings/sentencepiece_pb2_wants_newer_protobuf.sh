#!/usr/bin/env bash
# Asked: does sentencepiece 0.2.3 work beside protobuf 6, which grpcio's and many others' generated code wants?
# Version: sentencepiece 0.2.3 with protobuf 6.33.5.
# Behaviour: it declares no dependency on protobuf and installs; the module itself works; but the generated module that
# it ships for reading models, `sentencepiece.sentencepiece_model_pb2`, refuses every protobuf below 7.36.1 when it is
# imported. Code that reads a tokenizer.model through that module stops working after an upgrade that pip finds no fault with.
# Output seen (2026-11-29): google.protobuf.runtime_version.VersionError: Detected incompatible Protobuf
# Gencode/Runtime versions when loading sentencepiece_model.proto: gencode 7.36.1 runtime 6.33.5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sentencepiece==0.2.3 protobuf==6.33.5
"$folder/venv/bin/pip" check
"$folder/venv/bin/python" - <<'PY'
import sentencepiece

assert sentencepiece.SentencePieceProcessor() is not None
try:
    import sentencepiece.sentencepiece_model_pb2  # noqa: F401
except Exception as error:
    print(f"{type(error).__module__}.{type(error).__name__}: {error}")
    assert "VersionError" in type(error).__name__
else:
    raise SystemExit("it imports: the behaviour has changed")
PY
