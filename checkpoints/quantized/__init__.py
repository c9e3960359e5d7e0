"""Published quantized checkpoints: what their `quantization_config` says, and their matrices as `QTensor`s, bit by bit.

One module for each format (`awq`, `gptq`, `compressed_tensors`, `fp8`, `mxfp4`); `protocol` is what they share, `keys`
reads their settings, `mapping` matches their tensors with the decoder's matrices, `matrix_assembly` reads one.
Everything that a format's settings say is known or refused by name; nothing is read before that.
"""

from __future__ import annotations

from typing import Any

from checkpoints.files import QUANTIZATION_KEY as KEY
from checkpoints.quantized.awq import Awq
from checkpoints.quantized.compressed_tensors import CompressedTensors
from checkpoints.quantized.fp8 import Fp8
from checkpoints.quantized.gptq import Gptq
from checkpoints.quantized.mxfp4 import Mxfp4
from checkpoints.quantized.protocol import Format
from jaxinfer.config import ConfigError, UnsupportedModelError

_FORMATS = {
    "awq": Awq.parse,
    "gptq": Gptq.parse,
    "compressed-tensors": CompressedTensors.parse,
    "fp8": Fp8.parse,
    "mxfp4": Mxfp4.parse,
}


def parse(settings: Any) -> Format:
    """The format that a `quantization_config` describes.

    Raises UnsupportedModelError for a method, a key or a value that is not known, ConfigError for a malformed one; both
    name the field, its value and what is allowed.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"{KEY} is {settings!r:.80}; it must be an object")
    given = settings.get("quant_method")
    method = given.lower().replace("_", "-") if isinstance(given, str) else given  # as vLLM takes it
    if not isinstance(method, str) or method not in _FORMATS:
        producer = settings.get("producer")
        by = f" (written by {producer['name']})" if isinstance(producer, dict) and "name" in producer else ""
        raise UnsupportedModelError(f"{KEY}.quant_method is {given!r}{by}; it must be one of {', '.join(_FORMATS)}")
    # GPTQModel writes the method twice.
    other = settings.get("method")
    if other is not None and other != given:
        raise ConfigError(f"{KEY}.method is {other!r}; it must be the same as quant_method, {given!r}")
    return _FORMATS[method]({key: value for key, value in settings.items() if key != "method"})
