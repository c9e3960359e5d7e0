"""`--verify`: the finished parameters, the tokenizer and the chat template beside those of the transformers library.

The reference runs in float32 from the source's own weights; ours runs in the converted type, with a plain causal
attention instead of pages, so that nothing but names, layouts, rounding and the network itself is compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jinja2
import numpy as np
from flax import nnx

from checkpoints.files import CheckpointError
from checkpoints.load import load_unfinished
from checkpoints.rules import TensorMapping
from checkpoints.store import StoredParams
from checkpoints.tensor_assembly import DTYPES, checksum
from jaxinfer.config import ModelConfig
from jaxinfer.models.context import Attend, KvLayer, StepContext, by_table
from jaxinfer.models.decoder import Decoder
from jaxinfer.models.model import Model
from jaxinfer.models.parameters import parameter_dtype
from jaxinfer.text import ChatTemplateError, Tokenizer, load_tokenizer

RANDOM_PROMPTS = 4
PROMPT_TOKENS = 64
SEED = 0
TEXTS = (
    "Once upon a time, there was a small village by the sea.",
    "  def add(a, b):\n\treturn a + b  # 1234567890\n\n",
    "Größe, naïve café, Ελληνικά, русский, 日本語のテキスト, 한국어, עברית, हिन्दी.",
    "Emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 ✨ e\u0301 and ﬁnally \u00a0 spaces …",
    "<s> </s> <|endoftext|> <|im_start|> [INST] <bos>",
    "",
)
CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello, who are you?"},),
    (
        {"role": "user", "content": "  What is 2 + 2?\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Are you sure? 🤔"},
    ),
)


@dataclass(frozen=True)
class VerifyLimits:
    """Beyond these a conversion fails. The divergence is in nats, the mean over all positions of all prompts.

    Rounding weights and activations to bfloat16 costs well below 0.015 nats on trained models; a wrong norm, scale or
    head order costs tenths and more. In float32 only the order of sums differs, which is worth about 1e-5 of the
    largest logit; top-1 may differ there only where two logits tie.
    """

    divergence: float = 0.015
    error: float | None = None  # max|ours - theirs| / max|theirs|
    agreement: float | None = None  # share of positions with the same most likely token


LIMITS: Mapping[str, VerifyLimits] = {
    "float32": VerifyLimits(error=1e-3, agreement=0.99),
    "bfloat16": VerifyLimits(),
}


@dataclass(frozen=True)
class LogitComparison:
    """Over `positions` tokens of `prompts` prompts; `error` and `divergence` as in `Limits`."""

    prompts: int
    positions: int
    error: float
    divergence: float
    agreement: float


def dense_attend(positions: jax.Array) -> Attend:
    """Causal attention over the T tokens of one sequence, in float32, without KV pages; the KV is returned as it came.

    positions: (T,) int32. The oracle's formulation: all scores at once, masked, softmaxed.
    """

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        kv_layer: KvLayer,
        *,
        sliding_window: int | None,
        soft_cap: float | None,
        scale: float,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, KvLayer]:
        tokens, heads, _ = q.shape
        kv_heads = k.shape[1]
        grouped = q.astype(jnp.float32).reshape(tokens, kv_heads, heads // kv_heads, -1)  # (T, K, G, H)
        scores = scale * jnp.einsum(
            "tkgh,skh->kgts", grouped, k.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        distance = positions[:, None] - positions[None, :]  # (T query, T key)
        seen = distance >= 0
        if sliding_window is not None:
            seen &= distance < sliding_window
        scores = jnp.where(seen, scores, -jnp.inf)
        if sinks is not None:  # (N,): one score more for each query head, which adds nothing
            beside = sinks.astype(jnp.float32).reshape(kv_heads, -1, 1, 1)
            scores = jnp.concatenate([scores, jnp.broadcast_to(beside, (*scores.shape[:3], 1))], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)[..., :tokens]
        out = jnp.einsum("kgts,skh->tkgh", weights, v.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return out.reshape(q.shape).astype(q.dtype), kv_layer

    return attend


@partial(jax.jit, static_argnums=0)
def _dense_forward(graphdef: nnx.GraphDef, params: Any, ids: jax.Array, rope_variant: jax.Array) -> jax.Array:
    decoder: Decoder = nnx.merge(graphdef, params)
    positions = jnp.arange(ids.shape[0], dtype=jnp.int32)
    groups = decoder.config.cache_groups
    attention = by_table([dense_attend(positions)] * groups.num_tables)
    context = StepContext.of(decoder.config.ropes, positions, jnp.zeros_like(ids), rope_variant, attention)
    hidden, _ = decoder.hidden_states(ids, context, [(jnp.zeros(0), jnp.zeros(0))] * groups.depth)
    return decoder.logits(hidden)


def dense_logits(model: Model, token_ids: Sequence[int]) -> np.ndarray:
    """Logits after every token of one prompt, float32 (T, vocab_size), computed at once.

    The RoPE variant is the one that the whole prompt's length asks for. The prompt is padded at its end to a multiple
    of 64, which causal attention does not see, so that prompts of like length share an executable.
    """
    padded = np.zeros(-(-len(token_ids) // PROMPT_TOKENS) * PROMPT_TOKENS, np.int32)
    padded[: len(token_ids)] = token_ids
    border = model.config.longrope_border
    rope_variant = np.full_like(padded, border is not None and len(token_ids) > border)
    logits = _dense_forward(model.graphdef, model.params, padded, rope_variant)
    return np.asarray(logits)[: len(token_ids), : model.config.vocab_size]


def verify_conversion(
    hf_dir: Path,
    folder: Path,
    config: ModelConfig,
    mapping: TensorMapping,
    checksums: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Compare a conversion that lies in `folder` with its source; returns what the report says about it.

    Raises CheckpointError when a stored value differs from what was assembled, or a limit is passed.
    """
    dtype = DTYPES[config.dtype]
    _check_stored(StoredParams(folder, mapping.shapes, dtype), mapping, checksums, dtype)

    def run(prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        model = load_unfinished(folder, config)
        return [dense_logits(model, prompt) for prompt in prompts]

    return compare_with_transformers(hf_dir, folder, config, run, LIMITS[config.dtype], say)


def compare_with_transformers(
    hf_dir: Path,
    folder: Path,
    config: ModelConfig,
    run: Callable[[Sequence[Sequence[int]]], list[np.ndarray]],
    limits: VerifyLimits,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tokenizer, template and logits beside the library's; returns what the report says about them.

    run: logits of prompts by the converted model, float32 (tokens, vocab_size) of each.

    Raises CheckpointError when a limit is passed, or the two tokenize differently.
    """
    result: dict[str, Any] = {"stored_checksums": "equal"}
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        say("transformers or torch is not installed: logits, tokenizer and template are not compared")
        return result | {"skipped": "transformers or torch is not installed"}
    import torch
    import transformers

    result["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    tokenizer = load_tokenizer(folder)
    text_prompts = [tokenizer.encode(text) for text in TEXTS]
    theirs = _from_transformers(hf_dir, transformers.AutoTokenizer)
    result["tokenizer"] = compare_tokenizers(tokenizer, theirs)
    say("running the transformers model")
    prompts = _prompts(config, text_prompts)
    reference = _reference_logits(hf_dir, config.architecture, prompts)
    say("running the converted model")
    comparison = compare_logits(run(prompts), reference)
    result |= {"logits": asdict(comparison), "limits": asdict(limits)}
    check_limits(hf_dir, comparison, limits)
    say(
        f"logits: error {comparison.error:.2e}, divergence {comparison.divergence:.2e} nats, "
        f"top-1 agreement {comparison.agreement:.2%}"
    )
    return result


def _check_stored(stored: StoredParams, mapping: TensorMapping, checksums: Mapping[str, str], dtype: np.dtype) -> None:
    for path, entries in mapping.targets.items():
        parameter = stored.read(path, parameter_dtype(path, dtype))
        for entry in entries:
            if (found := checksum(entry, parameter)) != checksums[entry.source]:
                raise CheckpointError(
                    f"{stored.folder}: parameter {path}: expected the values of {entry.source} with SHA-256 "
                    f"{checksums[entry.source]}, found {found}"
                )


def _prompts(config: ModelConfig, text_prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    length = min(PROMPT_TOKENS, config.max_position_embeddings)
    largest = max(max(ids, default=0) for ids in text_prompts)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"verification: the tokenizer gives id {largest}; expected ids below vocab_size {config.vocab_size}"
        )
    random = np.random.default_rng(SEED).integers(0, config.vocab_size, (RANDOM_PROMPTS, length))
    return [*random.tolist(), *(list(ids[:length]) for ids in text_prompts if ids)]


def _reference_logits(hf_dir: Path, architecture: str, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    import torch
    import transformers

    # A model of several modalities is no AutoModelForCausalLM, and has its own class.
    kind = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    model = _from_transformers(hf_dir, kind, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(prompt)]), use_cache=False).logits[0].numpy() for prompt in prompts]


def _from_transformers(hf_dir: Path, kind: Any, **options: Any) -> Any:
    try:
        return kind.from_pretrained(hf_dir, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise CheckpointError(f"{hf_dir}: verification: transformers cannot load it: {error}") from error


def compare_logits(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> LogitComparison:
    """Both: per prompt float32 (T, vocab_size). The divergence is KL(theirs || ours)."""
    error = max(float(np.max(np.abs(a - b))) for a, b in zip(ours, theirs, strict=True))
    scale = max(float(np.max(np.abs(b))) for b in theirs)
    a, b = (_log_softmax(np.concatenate(list(side))) for side in (ours, theirs))
    divergence = np.sum(np.exp(b) * (b - a), axis=-1)
    return LogitComparison(
        prompts=len(ours),
        positions=len(a),
        error=error / scale,
        divergence=float(np.mean(divergence)),
        agreement=float(np.mean(np.argmax(a, axis=-1) == np.argmax(b, axis=-1))),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))


def check_limits(hf_dir: Path, found: LogitComparison, limits: VerifyLimits) -> None:
    """Raises CheckpointError naming the quantity, the limit and what was found. Not-a-number passes no limit."""
    checks = [("mean divergence (nats)", found.divergence, limits.divergence, found.divergence <= limits.divergence)]
    if limits.error is not None:
        checks.append(("error of the logits", found.error, limits.error, found.error <= limits.error))
    if limits.agreement is not None:
        checks.append(("top-1 agreement", found.agreement, limits.agreement, found.agreement >= limits.agreement))
    for name, value, limit, good in checks:
        if not good:
            raise CheckpointError(f"{hf_dir}: verification: {name} is {value:.3g}; the limit is {limit}")


def compare_tokenizers(ours: Tokenizer, theirs: Any) -> dict[str, Any]:
    """Ids of the same texts and chats from both tokenizers; `theirs` is a transformers tokenizer.

    Raises CheckpointError at the first difference, naming the text, expected and found.
    """
    for text in TEXTS:
        for special in (True, False):
            found = ours.encode(text, add_special_tokens=special)
            _same(
                f"ids of {text!r} (add_special_tokens={special})",
                found,
                theirs.encode(text, add_special_tokens=special),
            )
    bos = ours.bos_token_id
    _same("bos_token_id", bos, theirs.bos_token_id)
    result: dict[str, Any] = {"texts": len(TEXTS), "chats": 0, "bos_in_text": _count(ours.encode(TEXTS[0]), bos)}
    if ours.chat_template is None:
        _same("chat template", None, theirs.chat_template)
        return result
    for chat in CHATS:
        what = f"chat {chat[-1]['content']!r}"
        options = {"add_generation_prompt": True}
        rendered = _render(theirs.apply_chat_template, list(chat), **options, tokenize=False)
        _same(what, _render(ours.render_chat, list(chat), **options), rendered)
        if rendered is None:
            continue
        expected = theirs.apply_chat_template(list(chat), **options, tokenize=True, return_dict=True)
        found = ours.encode_chat(chat)
        _same(f"ids of {what}", found, list(expected["input_ids"]))
        result |= {"chats": result["chats"] + 1, "bos_in_chat": _count(found, bos)}
    return result


def _render(render: Callable[..., str], chat: list[dict[str, str]], **options: bool) -> str | None:
    """The text, or None where the template refuses the conversation (some want a system message, say)."""
    try:
        return render(chat, **options)
    except (jinja2.TemplateError, ChatTemplateError):
        return None


def _count(ids: Sequence[int], token: int | None) -> int:
    return 0 if token is None else list(ids).count(token)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise CheckpointError(f"verification: {what}: expected {expected!r:.300}, found {found!r:.300}")
