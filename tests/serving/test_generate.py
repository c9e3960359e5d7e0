"""Generate over a real channel: events, text, sequences, log-probabilities, chat, prompts, ids, salt and seed."""

from __future__ import annotations

import pytest

from jaxinfer.messages import Abort, Submit
from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.fakes import BOS, EOS, FakeOptions
from tests.serving.harness import collect, greedy, run, serving, tokenizer, until


def test_streams_text_as_it_is_generated():
    async def test():
        async with serving(FakeOptions(step_seconds=0.02)) as s:
            result = await collect(s.stub.Generate(greedy(max_tokens=8)))
            assert result.kinds == ["started"] + ["delta"] * 8 + ["finished"]
            assert [delta.text for delta in result.deltas] == list("abcdefgh")
            assert result.token_ids() == list(b"abcdefgh")
            assert result.end().finish_reason == pb.FINISH_REASON_LENGTH
            assert result.end().WhichOneof("stop_reason") is None
            assert result.events[0].started.prompt_tokens == 3  # <s>, h, i
            assert result.events[0].started.request_id
            assert result.usage == pb.Usage(prompt_tokens=3, completion_tokens=8, cached_tokens=3)

    run(test())


def test_end_of_sequence_is_a_token_but_no_text():
    async def test():
        async with serving(FakeOptions(eos_after=3)) as s:
            result = await collect(s.stub.Generate(greedy(max_tokens=8)))
            assert result.text() == "abc"
            assert result.token_ids() == [*b"abc", EOS]
            assert result.end().finish_reason == pb.FINISH_REASON_STOP
            assert result.end().WhichOneof("stop_reason") is None
            ignoring = await collect(s.stub.Generate(greedy(max_tokens=8, ignore_eos=True)))
            assert ignoring.text() == "abcdefgh"

    run(test())


def test_never_half_a_character():
    script = "naïve 🙂 日本"

    async def test():
        async with serving(FakeOptions(script=script, step_seconds=0.002)) as s:
            result = await collect(s.stub.Generate(greedy(max_tokens=len(script.encode()))))
            assert result.text() == script
            assert all("\ufffd" not in delta.text for delta in result.deltas)

    run(test())


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_across_tokens_ends_the_sequence_and_tells_the_engine(include):
    async def test():
        async with serving(FakeOptions(step_seconds=0.005)) as s:
            request = greedy(max_tokens=2000, stop=["zzz", "efg"], include_stop_str_in_output=include)
            result = await collect(s.stub.Generate(request))
            assert result.text() == ("abcdefg" if include else "abcd")
            assert result.end().finish_reason == pb.FINISH_REASON_STOP
            assert result.end().stop_string == "efg"
            await until(lambda: bool(s.received(Abort)), "the abort reaches the engine")
            assert s.received(Abort)[0].index == 0
            await until(lambda: s.engine._running == [], "the sequence is gone")

    run(test())


def test_stop_token_is_named():
    async def test():
        async with serving() as s:
            result = await collect(s.stub.Generate(greedy(max_tokens=20, stop_token_ids=[ord("d")])))
            assert result.text() == "abc"
            assert result.end().stop_token_id == ord("d")

    run(test())


def test_several_sequences_in_one_stream():
    async def test():
        async with serving(FakeOptions(max_num_seqs=2)) as s:
            sampling = pb.SamplingParams(n=4, seed=5, max_tokens=12)
            result = await collect(s.stub.Generate(pb.GenerateRequest(text="x", sampling=sampling)))
            texts = [result.text(i) for i in range(4)]
            assert len(set(texts)) == 4
            assert all(result.end(i).finish_reason == pb.FINISH_REASON_LENGTH for i in range(4))
            assert result.usage.completion_tokens == 48

    run(test())


def test_logprobs_of_output_and_prompt():
    async def test():
        async with serving() as s:
            request = greedy(text="prompt", max_tokens=6, logprobs=2, prompt_logprobs=1)
            result = await collect(s.stub.Generate(request))
            entries = [entry for delta in result.deltas for entry in delta.logprobs]
            assert [entry.token_id for entry in entries] == list(b"abcdef")
            assert [len(entry.top) for entry in entries] == [2] * 6
            assert (entries[0].logprob, entries[0].rank, entries[0].top[1].logprob) == (-0.5, 1, -1.5)
            scored = [event.prompt_logprobs for event in result.events if event.HasField("prompt_logprobs")]
            positions = [part.start + i for part in scored for i in range(len(part.entries))]
            assert positions == [1, 2, 3, 4, 5, 6]  # <s> has none
            assert [entry.token_id for part in scored for entry in part.entries] == list(b"prompt")

    run(test())


def test_logprobs_are_absent_unless_asked_for():
    async def test():
        async with serving() as s:
            result = await collect(s.stub.Generate(greedy()))
            assert all(not delta.logprobs for delta in result.deltas)
            assert "prompt_logprobs" not in result.kinds
            zero = await collect(s.stub.Generate(greedy(logprobs=0)))
            assert [len(e.top) for delta in zero.deltas for e in delta.logprobs] == [0] * 8

    run(test())


def test_final_only_sends_one_delta():
    async def test():
        async with serving(FakeOptions(step_seconds=0.002)) as s:
            request = greedy(max_tokens=20)
            request.final_only = True
            result = await collect(s.stub.Generate(request))
            assert result.kinds == ["started", "delta", "finished"]
            assert len(result.token_ids()) == 20

    run(test())


def test_a_long_result_is_cut_into_messages_that_clients_accept():
    async def test():
        async with serving() as s:
            request = greedy(max_tokens=3000, logprobs=20)
            request.final_only = True
            result = await collect(s.stub.Generate(request))
            assert len(result.deltas) == 12
            assert max(event.ByteSize() for event in result.events) < 1 << 20
            assert len(result.text()) == 3000
            assert sum(len(delta.logprobs) for delta in result.deltas) == 3000
            assert result.end().finish_reason == pb.FINISH_REASON_LENGTH

    run(test())


def test_prompts_as_text_tokens_and_chat():
    async def test():
        async with serving() as s:
            chat = pb.Chat(
                messages=[
                    pb.ChatMessage(role="system", content="s"),
                    pb.ChatMessage(role="user", content="u", extra_json='{"name": "Ann"}'),
                ],
                tools_json=['{"b": 1, "a": 2.0}'],
                template_variables_json='{"style": 3}',
            )
            sampling = pb.SamplingParams(max_tokens=2)
            for request in (
                pb.GenerateRequest(text="ab", sampling=sampling),
                pb.GenerateRequest(text="ab", add_special_tokens=False, sampling=sampling),
                pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2, 259]), sampling=sampling),
                pb.GenerateRequest(chat=chat, sampling=sampling),
            ):
                await collect(s.stub.Generate(request))
            plain, bare, tokens, rendered = (message.prompt_token_ids for message in s.received(Submit))
            assert plain == (BOS, *b"ab")
            assert bare == tuple(b"ab")
            assert tokens == (1, 2, 259)
            # Order of keys and kind of numbers are what the client wrote, and no <s> was added.
            expected = '<system>s;<user>u (Ann);[[{"b": 1, "a": 2.0}]]style=3;<assistant>'
            assert tokenizer().decode(list(rendered)) == expected
            chat.add_generation_prompt = False
            await collect(s.stub.Generate(pb.GenerateRequest(chat=chat, sampling=sampling)))
            assert tokenizer().decode(list(s.received(Submit)[-1].prompt_token_ids)) == expected[: -len("<assistant>")]

    run(test())


def test_truncation_keeps_the_end_of_every_kind_of_prompt():
    async def test():
        async with serving() as s:
            sampling = pb.SamplingParams(max_tokens=1, truncate_prompt_tokens=2)
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="u")])
            for prompt in ({"text": "abcdef"}, {"token_ids": pb.TokenIds(ids=[1, 2, 3])}, {"chat": chat}):
                await collect(s.stub.Generate(pb.GenerateRequest(sampling=sampling, **prompt)))
            got = [message.prompt_token_ids for message in s.received(Submit)]
            # The BOS that is added in front of a text stays; a chat's template writes its own.
            assert got == [(BOS, *b"f"), (2, 3), tuple(b"t>")]

    run(test())


def test_truncation_to_what_fits_leaves_room_for_one_token():
    async def test():
        async with serving(FakeOptions(max_model_len=40)) as s:
            sampling = pb.SamplingParams(truncate_prompt_tokens=-1)
            for prompt in ({"text": "x" * 100 + "y" * 38}, {"token_ids": pb.TokenIds(ids=range(100))}, {"text": "ab"}):
                await collect(s.stub.Generate(pb.GenerateRequest(sampling=sampling, **prompt)))
            got = [message.prompt_token_ids for message in s.received(Submit)]
            assert got == [(BOS, *b"y" * 38), tuple(range(61, 100)), (BOS, *b"ab")]
            assert [message.params.max_tokens for message in s.received(Submit)] == [1, 1, 37]

    run(test())


def test_max_tokens_defaults_to_the_rest_of_the_context_and_of_the_pool():
    async def test():
        sampling = pb.SamplingParams(temperature=0)
        async with serving(FakeOptions(max_model_len=40)) as s:
            result = await collect(s.stub.Generate(pb.GenerateRequest(text="ab", sampling=sampling)))
            assert result.usage.completion_tokens == 37
        async with serving(FakeOptions(max_model_len=4096, num_pages=3)) as s:  # two pages of 16 tokens
            result = await collect(s.stub.Generate(pb.GenerateRequest(text="ab", sampling=sampling)))
            assert result.usage.completion_tokens == 30  # the last token's KV is never written

    run(test())


def test_the_models_defaults_apply_and_yield():
    async def test():
        defaults = {"temperature": 0.25, "top_k": 7, "max_tokens": 30}
        async with serving(FakeOptions(max_model_len=40), sampling_defaults=defaults) as s:
            await collect(s.stub.Generate(pb.GenerateRequest(text="ab")))
            await collect(s.stub.Generate(pb.GenerateRequest(text="a" * 29)))
            await collect(s.stub.Generate(greedy(max_tokens=5, top_k=0)))
            await collect(s.stub.Generate(pb.GenerateRequest(text="ab", sampling=pb.SamplingParams(min_tokens=33))))
            first, long, explicit, minimum = (message.params for message in s.received(Submit))
            assert (first.temperature, first.top_k, first.max_tokens) == (0.25, 7, 30)
            assert long.max_tokens == 10  # a default shrinks to what fits
            assert (explicit.temperature, explicit.top_k, explicit.max_tokens) == (0.0, 0, 5)
            assert minimum.max_tokens == 37  # and gives way to min_tokens

    run(test())


def test_seeds_are_drawn_or_taken():
    async def test():
        async with serving() as s:
            request = pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=1))
            for _ in range(2):
                await collect(s.stub.Generate(request))
            request.sampling.seed = 2**64 - 1
            await collect(s.stub.Generate(request))
            drawn, again, taken = (message.seed for message in s.received(Submit))
            assert drawn != again
            assert taken == 2**64 - 1

    run(test())


def test_long_texts_leave_the_event_loop_free():
    """A request beyond the inline size is tokenized in a thread of the tokenizer pool; a short one is not."""
    import threading

    async def test():
        async with serving() as s:
            threads: list[str] = []
            model = s.server.frontend.model
            assert model is not None
            real = model.tokenizer

            class Spy:
                def __getattr__(self, name):
                    return getattr(real, name)

                def encode(self, *args, **kwargs):
                    threads.append(threading.current_thread().name)
                    return real.encode(*args, **kwargs)

            object.__setattr__(model, "tokenizer", Spy())
            await s.stub.Tokenize(pb.TokenizeRequest(text="short"))
            await s.stub.Tokenize(pb.TokenizeRequest(text="x" * 100_000))
            assert threads[0] == threading.main_thread().name
            assert threads[1].startswith("tokenizer")

    run(test())
