"""The committed stubs are what the generator makes of the committed .proto, and import nothing of the project."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from protos.jaxinfer.v1 import inference_pb2

ROOT = Path(__file__).resolve().parents[2]


def load_generator():
    spec = importlib.util.spec_from_file_location("generate_protos", ROOT / "scripts" / "generate_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_stubs_are_fresh(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    generator = load_generator()
    found = importlib.metadata.version("grpcio-tools")
    if found != generator.TOOLS_VERSION:
        pytest.skip(f"grpcio-tools is {found}; the stubs are generated with {generator.TOOLS_VERSION}")
    fresh = generator.generate(ROOT, tmp_path)
    assert len(fresh) == 6
    for path in fresh:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_bytes() == path.read_bytes(), f"run scripts/generate_protos.py: {committed.name} is stale"


def test_a_bad_proto_is_an_error(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "bad.proto").write_text("syntax = ")
    with pytest.raises(RuntimeError, match="protoc ended with code 1"):
        load_generator().generate(tmp_path, tmp_path / "out")


def test_protos_import_nothing_of_the_project():
    allowed = {"google", "grpc", "warnings", "protos", "collections", "typing"}
    for path in sorted((ROOT / "protos").rglob("*.py*")):
        if path.suffix not in (".py", ".pyi"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {name.partition(".")[0] for name in names} <= allowed, (path, names)


def test_field_numbers_of_requests_stay():
    """Numbers and names that must never change their meaning; add to this list, do not edit it."""
    fields = {f.name: f.number for f in inference_pb2.GenerateRequest.DESCRIPTOR.fields}
    assert fields == {
        "request_id": 1,
        "text": 2,
        "token_ids": 3,
        "chat": 4,
        "add_special_tokens": 5,
        "sampling": 6,
        "priority": 7,
        "cache_salt": 8,
        "final_only": 9,
        "model": 10,
        "session_id": 11,
        "prompt_cache_retention": 12,
    }
    sampling = inference_pb2.SamplingParams.DESCRIPTOR.fields
    assert [f.name for f in sorted(sampling, key=lambda f: f.number)] == [
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "logprobs",
        "prompt_logprobs",
        "logit_bias",
        "allowed_token_ids",
        "bad_token_ids",
        "skip_special_tokens",
        "truncate_prompt_tokens",
        "structured_outputs",
        "thinking_token_budget",
    ]
    assert [f.number for f in sorted(sampling, key=lambda f: f.number)] == list(range(1, 25))
