"""What a request must be to be served at all, and what the scheduler's books must add up to."""

from __future__ import annotations

from collections import Counter

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import InvalidRequest, SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.tenants import Tenants


def length_limit(submit: Submit, max_model_len: int, pool: PagePool) -> int:
    """Most tokens of prompt and output. Raises InvalidRequest when context or pool can never hold them."""
    params, prompt_len = submit.params, len(submit.prompt_token_ids)
    if not prompt_len:
        raise InvalidRequest("prompt", "", "it must hold at least one token")
    room = max_model_len - prompt_len
    if room < 1:
        raise InvalidRequest("prompt", f"{prompt_len} tokens", f"at most {max_model_len - 1} fit the context")
    if params.max_tokens is not None and params.max_tokens > room:
        raise InvalidRequest(
            "max_tokens",
            params.max_tokens,
            f"with a prompt of {prompt_len} tokens at most {room} fit the context of {max_model_len}",
        )
    max_total = prompt_len + (room if params.max_tokens is None else params.max_tokens)
    pages = -(-(max_total - 1) // pool.page_size)  # the last token's KV is never needed
    if pages > pool.usable_pages:
        raise InvalidRequest(
            "max_tokens",
            params.max_tokens,
            f"prompt and output need {pages} pages of {pool.page_size} tokens, the pool has {pool.usable_pages}",
        )
    return max_total


def stop_tokens(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> frozenset[int]:
    """The tokens that end a sequence. Raises InvalidRequest when nothing else may be generated before min_tokens."""
    stop_ids = set(params.stop_token_ids)
    if not params.ignore_eos:
        stop_ids.update(eos_token_ids)
    if params.min_tokens and params.allowed_token_ids is not None:
        left = set(params.allowed_token_ids) - stop_ids - set(params.bad_token_ids)
        if not left:
            raise InvalidRequest(
                "allowed_token_ids",
                params.allowed_token_ids,
                f"all of them end the text, so min_tokens {params.min_tokens} cannot be reached",
            )
    return frozenset(stop_ids)


def check_lists(live: list[Sequence], running: list[Sequence], free: list[int], slots: int, tenants: Tenants) -> None:
    """Raises AssertionError unless every live sequence is in one list and every slot is taken once or free."""
    waiting = list(tenants.waiting())
    if sorted(map(id, live)) != sorted(map(id, running + waiting)):
        raise AssertionError("a live sequence is in no list, or in two")
    taken = [s.slot for s in running]
    if sorted(taken + free) != list(range(slots)):
        raise AssertionError(f"slots do not add up: running {taken}, free {free}")
    if any(s.slot != -1 or s.pages for s in waiting):
        raise AssertionError("a waiting sequence holds a slot or pages")
    counted = {tenant.name: (tenant.alive, tenant.running) for tenant in tenants.alive}
    alive, in_slots = (Counter(s.request.tenant.name for s in group) for group in (live, running))
    if counted != {name: (alive[name], in_slots[name]) for name in alive}:
        raise AssertionError(f"tenants do not add up: counted {counted}, alive {alive}, running {in_slots}")
