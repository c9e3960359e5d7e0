"""Make tests/goldens: Hugging Face transformers' logits and greedy tokens for tiny random models of every family.

    python scripts/make_goldens.py [--case NAME ...]

Needs torch, transformers and safetensors, on CPU; it never imports the engine. What is made is described in
tests/goldens_lib; weights come from tests/golden_recipe.py, so that the tests rebuild them without torch. For each
case, weight seeds are tried in order until no greedy step is a near tie; then every deliberate mistake ("flag") of
the case is given to transformers too, and what it does to the logits is stored.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from golden_models import class_for  # noqa: E402

from tests.golden_recipe import (  # noqa: E402
    GOLDENS,
    Flag,
    GoldenCase,
    TensorSpec,
    build_tensors,
    flag_from_json,
    write_checkpoint,
)
from tests.goldens_lib.alias_cases import alias_cases  # noqa: E402
from tests.goldens_lib.cut_cases import cut_cases  # noqa: E402
from tests.goldens_lib.family_cases import family_cases  # noqa: E402
from tests.goldens_lib.gemma_phi_cases import gemma_phi_cases  # noqa: E402
from tests.goldens_lib.llama_cases import llama_cases  # noqa: E402
from tests.goldens_lib.moe_cases import moe_cases  # noqa: E402
from tests.goldens_lib.spec import DEFAULT_SCALES, CaseSpec  # noqa: E402
from tests.goldens_lib.wrapper_cases import wrapper_cases  # noqa: E402

GREEDY_TOKENS = 64
MIN_MARGIN = 1e-3  # smallest gap of the two best logits over all greedy steps; rounding moves logits by 1e-5
MIN_DISTINCT = 8  # tokens: a decode that repeats one token proves little
MIN_FLAG_ERROR = 1e-2
MAX_FLOAT32_ERROR = 2e-6  # float32 against float64, relative: leaves room under the 1e-5 of the engine's tests


class GoldenError(RuntimeError):
    """A case that does not exercise what it claims, or that transformers does not compute consistently."""


def load_model(case: GoldenCase, *, alt: bool = False, flag: Flag | None = None) -> Any:
    """Write the checkpoint, let transformers read it, and assert that it took exactly the recipe's tensors."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, folder, alt=alt, flag=flag)
        # torch's grouped product takes neither odd widths nor float64, which the loop over experts does.
        model, info = class_for(case.config).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(key):
            raise GoldenError(f"{case.name}: {key} = {info[key]}")
    arrays = build_tensors(case, flag=flag)
    state = published_state(model)
    if set(state) != set(arrays):
        raise GoldenError(f"{case.name}: names differ: {sorted(set(state) ^ set(arrays))}")
    for name, value in state.items():
        if not np.array_equal(value, arrays[name]):
            raise GoldenError(f"{case.name}: {name} was not loaded as written")
    return model.eval()


def model_class(config: Mapping[str, Any]) -> Any:
    """transformers' class: of a text model, or of a whole with other modalities around one."""
    return getattr(transformers, config["architectures"][0])


def published_state(model: Any) -> dict[str, np.ndarray]:
    """The tensors as checkpoints have them: transformers holds experts in one array and writes them apart, and leaves
    out a head that shares the embedding's storage."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def make_specs(spec: CaseSpec) -> dict[str, TensorSpec]:
    """What each tensor of the model is drawn from: shapes from transformers, kinds from the tensors' names."""
    cls = class_for(spec.config)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(spec.config))
        own = getattr(cls, "config_class", None)
        config = (own or transformers.AutoConfig).from_pretrained(folder)
    model = cls.from_config(config) if own is None else cls(config)
    scales = list((spec.scales or {}).items()) + list(DEFAULT_SCALES.items())

    def describe(name: str, shape: tuple[int, ...]) -> TensorSpec:
        scale = next((scale for key, scale in scales if re.search(key, name)), None)
        if re.match(spec.others, name):  # drawn, so that a file has them; nothing that is compared looks at them
            return TensorSpec(shape, "matrix", 0.02)
        if ".act_fn." in name:  # xIELU's numbers: eps is next to zero, or the activation would jump there
            kind = "norm" if name.endswith("beta") else "bias"
            return TensorSpec(shape, kind, 1e-3 if name.endswith("eps") else 1.0)
        if len(shape) == 1 and name.endswith(".bias"):
            return TensorSpec(shape, "bias")
        if len(shape) == 1 and name.endswith("sinks"):
            return TensorSpec(shape, "bias", scale or 1.0)
        if len(shape) == 2 and name.endswith("_bias"):  # of all experts
            return TensorSpec(shape, "bias")
        if len(shape) == 1 and name.endswith("e_score_correction_bias"):
            return TensorSpec(shape, "bias")
        if len(shape) == 1 and name.endswith("norm.weight"):
            return TensorSpec(shape, "norm_offset" if spec.norm_offset else "norm", scale or 1.0)
        if len(shape) not in (2, 3) or scale is None:
            raise GoldenError(f"{spec.name}: no rule for {name} {shape}")
        return TensorSpec(shape, "matrix", scale)

    return {name: describe(name, tuple(value.shape)) for name, value in published_state(model).items()}


def make_prompts(spec: CaseSpec) -> tuple[tuple[int, ...], ...]:
    """Random prompts, the same for every seed of the weights; every vocabulary entry may occur, special ones too."""
    generator = np.random.Generator(np.random.PCG64(list(spec.name.encode())))
    vocab = spec.config.get("text_config", spec.config)["vocab_size"]
    return tuple(tuple(int(u * vocab) for u in generator.random(length)) for length in spec.prompt_lengths)


def compute_logits(model: Any, prompts: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, ...]:
    """Logits at all positions of each prompt, one forward pass without cache each, in the model's dtype."""
    with torch.inference_mode():
        return tuple(model(torch.tensor([prompt]), use_cache=False).logits[0].numpy() for prompt in prompts)


def greedy(model: Any, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], np.ndarray]:
    """GREEDY_TOKENS tokens of `generate` with EOS disabled, and the logits (tokens, vocab) they were taken from."""
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=GREEDY_TOKENS, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        # The mask is given because generate would otherwise hide prompt tokens that equal the padding token.
        out = model.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True, return_dict_in_generate=True)
    tokens = tuple(out.sequences[0, len(prompt) :].tolist())
    logits = torch.stack(out.logits)[:, 0].numpy()
    if len(tokens) != GREEDY_TOKENS or tuple(logits.argmax(-1).tolist()) != tokens:
        raise GoldenError(f"generate made {len(tokens)} tokens, or did not always take the largest logit")
    return tokens, logits


def recompute_greedy(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """The same tokens by brute force: the whole sequence anew for each one, no cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(GREEDY_TOKENS):
            tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def stale_cache_greedy(model: Any, prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Greedy tokens of a decoder that keeps its cache come what may, as `generate` does not with longrope."""
    tokens: list[int] = []
    inputs, cache = list(prompt), None
    with torch.inference_mode():
        for _ in range(GREEDY_TOKENS):
            out = model(torch.tensor([inputs]), past_key_values=cache, use_cache=True)
            cache, inputs = out.past_key_values, [int(out.logits[0, -1].argmax())]
            tokens += inputs
    return tuple(tokens)


def relative_error(wrong: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> float:
    """max|wrong - right| / max|right| over all prompts and positions."""
    worst = max(float(np.abs(w.astype(np.float64) - r).max()) for w, r in zip(wrong, right, strict=True))
    return worst / max(float(np.abs(r).max()) for r in right)


def round_error(value: float) -> float:
    """Three digits are plenty for a report, and keep the files free of noise."""
    return float(f"{value:.3g}")


def search_seed(spec: CaseSpec, max_seeds: int) -> tuple[GoldenCase, Any]:
    """The first seed from 1 up whose greedy steps are no near ties and do not get stuck; with its model."""
    case = GoldenCase(
        name=spec.name,
        config=spec.config,
        config_alt=spec.config_alt,
        generation_config=spec.generation_config,
        seed=0,
        specs=make_specs(spec),
        prompts=make_prompts(spec),
        logits=(),
        greedy=(),
        decode_logits=np.zeros(()),
        min_margin=0.0,
        flags=(),
        extra={},
    )
    for seed in range(1, max_seeds + 1):
        case = dataclasses.replace(case, seed=seed)
        model = load_model(case)
        answers = [greedy(model, prompt) for prompt in case.prompts]
        best = [np.sort(logits, axis=-1)[:, -2:] for _, logits in answers]
        margin = min(float((pair[:, 1] - pair[:, 0]).min()) for pair in best)
        distinct = min(len(set(tokens)) for tokens, _ in answers)
        print(f"  {spec.name}: seed {seed}: margin {margin:.2e}, distinct tokens {distinct}", flush=True)
        if margin > MIN_MARGIN and distinct >= MIN_DISTINCT:
            logits = compute_logits(model, case.prompts)
            tokens = tuple(tokens for tokens, _ in answers)
            found = dataclasses.replace(case, logits=logits, greedy=tokens, decode_logits=answers[1][1])
            return dataclasses.replace(found, min_margin=margin), model
    raise GoldenError(f"{spec.name}: no seed up to {max_seeds} has a margin above {MIN_MARGIN} and enough variety")


def check_decoding(case: GoldenCase, model: Any) -> list[int | None]:
    """Greedy tokens against brute force and against a cache that is never dropped; see `stale_cache_differs_at`."""
    differs: list[int | None] = []
    for prompt, tokens, logits in zip(case.prompts, case.greedy, case.logits, strict=True):
        if recompute_greedy(model, prompt) != tokens:
            raise GoldenError(f"{case.name}: generate and recomputation differ for the prompt of {len(prompt)} tokens")
        if not np.isfinite(logits).all() or int(logits[-1].argmax()) != tokens[0]:
            raise GoldenError(f"{case.name}: the prompt's logits do not lead to the first greedy token")
        stale = stale_cache_greedy(model, prompt)
        differs.append(next((step for step in range(GREEDY_TOKENS) if stale[step] != tokens[step]), None))
    rope = model.config.get_text_config().rope_parameters
    if (rope.get("rope_type") == "longrope") != any(step is not None for step in differs):
        raise GoldenError(f"{case.name}: a cache that is never dropped goes astray at steps {differs}")
    return differs


def check_numbers(case: GoldenCase) -> float:
    """The two spellings must agree to the bit; returns the float32 error (see GoldenCase.extra)."""
    if case.config_alt is not None:
        other = compute_logits(load_model(case, alt=True), case.prompts)
        if any(not np.array_equal(a, b) for a, b in zip(case.logits, other, strict=True)):
            raise GoldenError(f"{case.name}: the two spellings differ by {relative_error(other, case.logits):.2e}")
    error = relative_error(case.logits, compute_logits(load_model(case).double(), case.prompts))
    if error > MAX_FLOAT32_ERROR:
        raise GoldenError(f"{case.name}: float32 rounding alone costs {error:.2e}: the model is ill-conditioned")
    return error


def measure_flags(case: GoldenCase, spec: CaseSpec) -> list[dict[str, Any]]:
    """The case's deliberate mistakes with what each does to transformers' own logits."""
    measured = []
    for data in spec.flags:
        wrong = load_model(case, flag=flag_from_json(data))
        error = relative_error(compute_logits(wrong, case.prompts), case.logits)
        print(f"  {case.name}: {data['name']}: {error:.3g}", flush=True)
        measured.append(dict(data) | {"error": round_error(error)})
    if weak := [f"{flag['name']} {flag['error']}" for flag in measured if not flag["error"] > MIN_FLAG_ERROR]:
        raise GoldenError(f"{case.name}: mistakes that hardly show: {weak}")
    return measured


def dump_json(data: Mapping[str, Any]) -> str:
    """JSON with one line per entry, two levels deep: short files, readable diffs."""

    def block(value: Any, depth: int) -> str:
        if depth == 0 or not isinstance(value, dict | list) or not value:
            return json.dumps(value)
        pad, end = "  " * (3 - depth), "  " * (2 - depth)
        if isinstance(value, dict):
            body = [f"{pad}{json.dumps(key)}: {block(item, depth - 1)}" for key, item in value.items()]
            return "{\n" + ",\n".join(body) + f"\n{end}}}"
        return "[\n" + ",\n".join(pad + block(item, depth - 1) for item in value) + f"\n{end}]"

    return block(dict(data), 2) + "\n"


def store(case: GoldenCase, flags: list[dict[str, Any]], extra: dict[str, Any], folder: Path) -> None:
    """Write NAME.json and NAME.npz; logits are stored as they are, float32."""
    data = {
        "config": case.config,
        "config_alt": case.config_alt,
        "generation_config": case.generation_config,
        "seed": case.seed,
        "tensors": {name: [list(spec.shape), spec.kind, spec.scale] for name, spec in case.specs.items()},
        "prompts": [list(prompt) for prompt in case.prompts],
        "greedy": [list(tokens) for tokens in case.greedy],
        "min_margin": math.floor(case.min_margin * 1e7) / 1e7,
        "flags": flags,
        "extra": extra,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case.name}.json").write_text(dump_json(data))
    arrays: dict[str, Any] = {
        f"prompt_{index}": np.ascontiguousarray(logits) for index, logits in enumerate(case.logits)
    }
    arrays["decode_1"] = np.ascontiguousarray(case.decode_logits)
    np.savez_compressed(folder / f"{case.name}.npz", **arrays)


def make_case(spec: CaseSpec, options: argparse.Namespace) -> None:
    started = time.monotonic()
    case, model = search_seed(spec, options.max_seeds)
    differs = check_decoding(case, model)
    error = check_numbers(case)
    flags = measure_flags(case, spec)
    extra = {
        "tensor_parallel": list(spec.tensor_parallel),
        "float32_error": round_error(error),
        "stale_cache_differs_at": differs,
        "made_by": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "arguments": f"--case {spec.name} --max-seeds {options.max_seeds}",
        },
    }
    store(case, flags, extra, options.out)
    print(f"{spec.name}: seed {case.seed}, margin {case.min_margin:.2e}, float32 error {error:.1e}, "
          f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip


def main() -> int:
    makers = (llama_cases, family_cases, gemma_phi_cases, moe_cases, alias_cases, cut_cases, wrapper_cases)
    specs = {spec.name: spec for maker in makers for spec in maker()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=sorted(specs), help="only this one (repeatable)")
    parser.add_argument("--max-seeds", type=int, default=60, help="weight seeds to try per case")
    parser.add_argument("--out", type=Path, default=GOLDENS, help="folder to write to (default: %(default)s)")
    parser.add_argument("--keep-going", action="store_true", help="report a case that fails and go on with the next")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = []
    for index, name in enumerate(options.case or specs, start=1):
        print(f"[{index}/{len(options.case or specs)}] {name}", flush=True)
        try:
            make_case(specs[name], options)
        except GoldenError as error:
            if not options.keep_going:
                raise
            print(f"FAILED {error}", flush=True)
            failed.append(name)
    if failed:
        print(f"failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
