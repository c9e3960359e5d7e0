"""Makes a sequence's row of a step."""

from __future__ import annotations

from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.step_plan import Admission, PlanRow


def plan_row(kv: KVManager, sequence: Sequence, length: int, draws: int = 1) -> PlanRow:
    """The next `length` tokens of a running sequence: takes their pages, counts them as computed and, where the row
    catches up with what is known, the tokens to come, at most `draws`, as pending."""
    start = sequence.num_computed
    end = start + length
    in_prompt = start < sequence.prompt_len
    fresh = sequence.needs_admission
    writes = kv.extend(sequence, end) if end > sequence.capacity or sequence.left_behind else ()
    admission = _admission(kv, sequence) if fresh else None
    sequence.num_computed = end
    request = sequence.request
    request.tenant.charge(sequence, start, end)
    token_ids = sequence.tokens(start, end) if in_prompt or start < sequence.num_known else ()
    targets: tuple[int, ...] = ()
    if in_prompt:
        sequence.chunks += 1
        if request.params.prompt_logprobs is not None and not sequence.index:
            targets = request.prompt[start + 1 : end + 1]  # none of the prompt's last token
    if end == sequence.num_tokens:
        if draws > 1:
            draws = min(draws, sequence.max_total - end)
        sequence.num_pending += draws
        sequence.num_tokens += draws
    else:
        draws = 0
    return PlanRow(
        request.request_id,
        sequence.index,
        sequence.run_epoch,
        sequence.kv_epoch,
        sequence.slot,
        start,
        length,
        draws,
        token_ids,
        () if fresh else writes,
        admission,
        targets,
    )


def _admission(kv: KVManager, sequence: Sequence) -> Admission:
    sequence.needs_admission = False
    request = sequence.request
    start = sequence.num_computed
    return Admission(
        start,
        sequence.prompt_len,
        kv.table_columns(sequence),
        sequence.rope_variant,
        request.params,
        request.seed,
        sequence.index,
        request.banned_ids,
        sequence.tokens(0, start) if request.params.has_penalties else (),
    )
