"""What a request must be to be served at all, and what the scheduler's books must add up to."""

from __future__ import annotations

from collections import Counter

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import Submit
from jaxinfer.sampling_params import MAX_STOP_TOKEN_IDS, SamplingParams
from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.page_pool import IntegrityError, PagePool
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.step_plan import PlanRow
from jaxinfer.scheduling.tenants import Tenants


def length_limit(submit: Submit, max_model_len: int, kv: KVManager) -> int:
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
    pages, pool = kv.needs(max_total - 1), kv.pool  # the last token's KV is never needed
    if pages > pool.usable_pages:
        raise InvalidRequest(
            "max_tokens",
            params.max_tokens,
            f"prompt and output need {pages} pages of {pool.page_size} tokens, the pool has {pool.usable_pages}",
        )
    return max_total


def stop_tokens(
    params: SamplingParams, eos_token_ids: tuple[int, ...], vocab_size: int | None = None
) -> tuple[frozenset[int], tuple[int, ...]]:
    """The tokens that end a sequence, and those that it may not generate before min_tokens.

    The latter include end tokens that `ignore_eos` keeps from ending the text, as in vLLM. Raises InvalidRequest when
    they are more than a slot has room for, or when nothing else may be generated.
    """
    own, end = set(params.stop_token_ids), set(eos_token_ids)
    stop_ids = frozenset(own if params.ignore_eos else own | end)
    if not params.min_tokens:
        return stop_ids, ()
    banned = own | end
    if len(banned) > MAX_STOP_TOKEN_IDS:
        held = f"the model's {len(end)} end tokens" + (f" and {len(own)} stop_token_ids" if own else "")
        raise InvalidRequest(
            "min_tokens", params.min_tokens, f"it holds back {held}, and at most {MAX_STOP_TOKEN_IDS} can be"
        )
    allowed, bad = params.allowed_token_ids, set(params.bad_token_ids)
    if allowed is not None and not set(allowed) - banned - bad:
        raise InvalidRequest(
            "allowed_token_ids", allowed, f"all of them end the text, so min_tokens {params.min_tokens} is out of reach"
        )
    if vocab_size is not None and len(banned | bad) >= vocab_size:
        raise InvalidRequest(
            "min_tokens", params.min_tokens, "with bad_token_ids and what ends the text it bans the whole vocabulary"
        )
    return stop_ids, tuple(sorted(banned))


def check_nothing_left(pool: PagePool, slots: int, running: int, tenants: Tenants) -> None:
    """Raises IntegrityError unless all pages and slots are back. slots: those that are missing."""
    left = {
        "pages": pool.usable_pages - pool.available,
        "slots": slots,
        "running sequences": running,
        "waiting sequences": tenants.num_waiting,
        "tenants": len(tenants.alive),
    }
    if any(left.values()):
        raise IntegrityError(f"no request is left, but these are still taken: {left}")


def check_lists(live: list[Sequence], running: list[Sequence], free: list[int], slots: int, tenants: Tenants) -> None:
    """Raises AssertionError unless every live sequence is in one list and every slot is taken once or free."""
    waiting = list(tenants.waiting())
    if len(waiting) != tenants.num_waiting:
        raise AssertionError(f"{len(waiting)} sequences wait, counted {tenants.num_waiting}")
    if sorted(map(id, live)) != sorted(map(id, running + waiting)):
        raise AssertionError("a live sequence is in no list, or in two")
    taken = [s.slot for s in running]
    if sorted(taken + free) != list(range(slots)):
        raise AssertionError(f"slots do not add up: running {taken}, free {free}")
    if any(s.slot != -1 or s.held or any(s.tables) for s in waiting):
        raise AssertionError("a waiting sequence holds a slot or pages")
    counted = {tenant.name: (tenant.alive, tenant.running, tenant.pages) for tenant in tenants.alive}
    alive, in_slots = (Counter(s.request.tenant.name for s in group) for group in (live, running))
    pages: Counter[str] = Counter()
    for sequence in running:
        pages[sequence.request.tenant.name] += sequence.held
    if counted != {name: (alive[name], in_slots[name], pages[name]) for name in alive}:
        raise AssertionError(f"tenants do not add up: counted {counted}, alive {alive}, running {in_slots}")


def check_tables(kv: KVManager, live: list[Sequence]) -> None:
    """Raises IntegrityError unless sequences hold what is counted, all that they will see and not too much."""
    shape = kv.shape
    for sequence in live:
        held = 0
        for group, table in enumerate(sequence.tables):
            first, kept = sequence.first[group], len(table) - sequence.first[group]
            held += shape.sizes[group] * kept
            if len(table) * kv.page_size != sequence.capacity or any(table[:first]) or not all(table[first:]):
                raise IntegrityError(f"{sequence.key}: group {group} should have pages from {first} on: {table}")
            if first > shape.first_seen(group, sequence.num_computed) or kept > shape.most[group]:
                raise IntegrityError(f"{sequence.key} holds too few or too many pages of group {group}: {table}")
        if held != sequence.held:
            raise IntegrityError(f"{sequence.key} holds {held} pages, counted {sequence.held}")


def pages_written(kv: KVManager, sequence: Sequence, row: PlanRow) -> list[int]:
    """The pages, or first pages of bundles, that a row just planned will write. Raises IntegrityError when one that it
    reads was given back."""
    start, end = row.start // kv.page_size, (row.start + row.length - 1) // kv.page_size + 1
    for group, table in enumerate(sequence.tables):
        if not all(table[kv.shape.first_seen(group, row.start) : end]):
            raise IntegrityError(f"{sequence.key} reads from {row.start} on, but group {group} has only {table}")
    return [page for table in sequence.tables for page in table[start:end]]
