"""What the other files of a Hugging Face folder say about its weights. Standard library only; no weights are read.

config.json does not always say all: older quantizers wrote a file of their own beside it, and a folder may hold weights
of another kind than safetensors. What would change the meaning of the weights is read here, or refused by name, before
anybody plans or loads the model.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.files import HF_CONFIG_FILE, QUANTIZATION_KEY, CheckpointError, read_json_object
from jaxinfer.models.wrappers import TEXT_CONFIG, text_settings

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # of a safetensors file: the limit of the safetensors library itself

COMPRESSION_KEY = "compression_config"  # how compressed-tensors called quantization_config in its first releases
QUANTIZER_FILES = ("quantize_config.json", "quant_config.json")  # AutoGPTQ's and GPTQModel's; AutoAWQ's
MODELOPT_FILE = "hf_quant_config.json"
ADAPTER_FILE = "adapter_config.json"

# Weights that are not read, by the pattern of their names; the first that matches gives the message.
_PICKLE = (
    "is a pickle, which can run code when it is read; expected safetensors. Convert it where torch and transformers "
    'are installed: AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(folder), and remove the '
    ".bin files"
)
_OTHER_WEIGHTS = (
    ("pytorch_model*.bin*", _PICKLE),
    ("*.gguf", "is GGUF, which is not read; expected safetensors (the model that it was made from has them)"),
    (
        "consolidated*",
        "has the names and layout of the publisher's own code (as params.json has), which are not read; expected the "
        "model in transformers' layout, with config.json and model*.safetensors",
    ),
    (
        "adapter_*",
        "is a LoRA adapter, which is not supported; expected a whole model: merge it where torch and peft are "
        "installed (merge_and_unload, then save_pretrained)",
    ),
    ("tf_model.h5", "is TensorFlow's; expected safetensors"),
    ("flax_model*.msgpack*", "is Flax's; expected safetensors"),
    ("*.pth", "is a pickle, which can run code when it is read; expected safetensors"),
    ("*.pt", "is a pickle, which can run code when it is read; expected safetensors"),
    ("*.onnx", "is ONNX, which is not read; expected safetensors"),
)
_PARAMS_FILE = "params.json"  # beside a config.json it says nothing that matters
_NOT_THE_MODEL = ("consolidated*", "adapter_*")  # safetensors files that are no part of a model in transformers' layout

# Ends of tensor names that only a quantized layer has, and who writes them.
_QUANTIZED_TENSORS = (
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    ("_blocks", "MXFP4"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale_2", "ModelOpt"),
    (".weight_scale", "compressed-tensors, fp8 or ModelOpt"),
    (".weight.absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".weight_format", "bitsandbytes"),
)


def weight_files(folder: Path) -> list[str]:
    """The safetensors files that can be a model in transformers' layout, sorted."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return [name for name in names if not _like(name, _NOT_THE_MODEL)]


def check_weights(folder: Path) -> None:
    """Raises CheckpointError, naming the file and its kind, for a folder whose only weights are of another kind.

    A folder without any weights passes: a model can be planned from its config.json.
    """
    if weight_files(folder):
        return
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for pattern, what in _OTHER_WEIGHTS:
        if found := next((name for name in names if fnmatch.fnmatch(name, pattern)), None):
            raise CheckpointError(f"{folder}: {found} {what}")
    if _PARAMS_FILE in names and HF_CONFIG_FILE not in names:
        raise CheckpointError(
            f"{folder}: {_PARAMS_FILE} describes a model in the layout of its publisher's own code; expected "
            "transformers' config.json"
        )


def notes(folder: Path) -> tuple[str, ...]:
    """What whoever serves the folder should be told of files that are not read."""
    if (folder / ADAPTER_FILE).is_file():
        return (f"{ADAPTER_FILE} is not read: the model is served without that LoRA adapter",)
    return ()


@dataclass(frozen=True)
class QuantizationSettings:
    """How the weights are quantized, as in a `quantization_config`, and where that is written.

    Attributes:
        file: the file that says so.
        key: the key of it that holds the settings; "" where the whole file does.
        settings: with the keys of a quantization_config.
        renamed: {key of a quantization_config: the key that the file has}.
    """

    file: Path
    key: str
    settings: Any
    renamed: Mapping[str, str] = field(default_factory=dict)

    def fault(self, error: Exception) -> CheckpointError:
        """The error of a parser of quantization_configs, in the words of the file."""
        text = str(error)
        for name, written in self.renamed.items():
            text = re.sub(rf"\b{QUANTIZATION_KEY}\.{name}\b", f"{QUANTIZATION_KEY}.{written}", text)
        prefix = f"{self.key}." if self.key else ""
        text = text.replace(f"{QUANTIZATION_KEY}.", prefix).replace(QUANTIZATION_KEY, self.key or "it")
        return CheckpointError(f"{self.file}: {text}")


def quantization_settings(folder: Path, hf_config: Mapping[str, Any]) -> QuantizationSettings | None:
    """What the folder says of how its weights are quantized; None where they are not.

    config.json's quantization_config counts before the files of AutoGPTQ and AutoAWQ, as in vLLM; in a model of several
    modalities it may stand in text_config. Those files name their keys in their own way and no method; here both are
    as in a quantization_config.

    Raises CheckpointError for a file of ModelOpt, for two files of quantizers, and for tensors of quantized layers that
    no file describes.
    """
    config_file = folder / HF_CONFIG_FILE
    for outer, part in (("", hf_config), (f"{TEXT_CONFIG}.", text_settings(hf_config))):
        if settings := part.get(QUANTIZATION_KEY):
            return QuantizationSettings(config_file, f"{outer}{QUANTIZATION_KEY}", settings)
        if settings := part.get(COMPRESSION_KEY):
            if isinstance(settings, dict):
                settings = {"quant_method": "compressed-tensors", **settings}
            return QuantizationSettings(config_file, f"{outer}{COMPRESSION_KEY}", settings)
    if (folder / MODELOPT_FILE).is_file():
        described = read_json_object(folder / MODELOPT_FILE).get("quantization")
        algorithm = described.get("quant_algo") if isinstance(described, dict) else None
        raise CheckpointError(
            f"{folder / MODELOPT_FILE}: quant_algo is {algorithm!r}: a checkpoint quantized by NVIDIA's ModelOpt, "
            "which is not supported"
        )
    found = [name for name in QUANTIZER_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: has {' and '.join(found)}; expected one that says how the weights are quantized"
        )
    if found:
        return _of_quantizer(folder / found[0], read_json_object(folder / found[0]))
    _check_tensors(folder)
    return None


def _of_quantizer(file: Path, settings: dict[str, Any]) -> QuantizationSettings:
    """AutoAWQ wrote w_bit and q_group_size; neither it nor AutoGPTQ named a method."""
    ours = {"w_bit": "bits", "q_group_size": "group_size"}
    method = "awq" if settings.keys() & {*ours, "zero_point"} else "gptq"
    result = {"quant_method": method} | {ours.get(key, key): value for key, value in settings.items()}
    return QuantizationSettings(file, "", result, {name: key for key, name in ours.items() if key in settings})


def _check_tensors(folder: Path) -> None:
    for name in tensor_names(folder):
        for end, who in _QUANTIZED_TENSORS:
            if name.endswith(end):
                raise CheckpointError(
                    f"{folder}: tensor {name} is of a quantized layer ({who}), but {HF_CONFIG_FILE} has no "
                    f"{QUANTIZATION_KEY}, and there is no {QUANTIZER_FILES[0]}: nothing says how it is quantized"
                )


def tensor_names(folder: Path) -> tuple[str, ...]:
    """The tensors that the index or the header of a single file names; () where neither is there or can be read.

    `checkpoints.reader` checks both completely, and says what is wrong with them, when weights are loaded.
    """
    files = weight_files(folder)
    try:
        if (folder / INDEX_FILE).is_file():
            listed = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")).get("weight_map", {})
        elif len(files) == 1:
            listed = _header(folder / files[0])
        else:
            return ()
    except (OSError, ValueError, AttributeError, RecursionError):
        return ()
    return tuple(listed) if isinstance(listed, dict) else ()


def common_dtype(folder: Path) -> str | None:
    """The floating-point type, as safetensors spells it, that most elements of the folder's tensors have; None without
    any.

    Types of 8 bits are those of quantized layers and do not count. What cannot be read, `checkpoints.reader` will name.
    """
    counts = dict.fromkeys(("F64", "F32", "F16", "BF16"), 0)
    for name in weight_files(folder):
        try:
            for tensor in _header(folder / name).values():
                if tensor.get("dtype") in counts:
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            continue
    most = max(counts, key=lambda dtype: counts[dtype])
    return most if counts[most] else None


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file's header, unchecked. Raises what reading and decoding raise."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        found: dict[str, Any] = json.loads(opened.read(length)) if length <= MAX_HEADER_BYTES else {}
    return found


def unnamed_model_files(folder: Path) -> list[str]:
    """The files of a model that is not called model.safetensors and has no index; [] where that is not certain.

    One file of any name, as AutoGPTQ wrote it, or all of a set NAME-00001-of-0000N.safetensors.
    """
    files = weight_files(folder)
    if len(files) == 1:
        return files
    parts = [re.fullmatch(r"(.+)-(\d+)-of-(\d+)\.safetensors", name) for name in files]
    sets = {(part[1], int(part[3])) for part in parts if part is not None}
    if not files or None in parts or len(sets) != 1:
        return []
    ((_, count),) = sets
    numbers = sorted(int(part[2]) for part in parts if part is not None)
    return files if numbers == list(range(1, count + 1)) else []


def _like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
