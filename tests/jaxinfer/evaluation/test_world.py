"""The story grammar: slots, choices, sentence case, and the two sides of the stories."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from jaxinfer.evaluation.item import is_held_out
from jaxinfer.evaluation.world import StoryTeller, draw_story, held_out_stories, pools
from jaxinfer.evaluation.world.grammar import Bindings, expand
from jaxinfer.evaluation.world.stories import sentence_case


def test_slots_keep_their_value_and_take_articles() -> None:
    rng = random.Random(0)
    bindings = Bindings(rng, {"he": "she"}, {"kind": ["owl", "fox", "bear"], "home": ["[a {kind} den|a {kind} den]"]})
    text = expand("{He} saw {a:kind}. {A:kind}, {kind}; {home}", bindings, rng)
    kind = bindings.value("kind")
    article = "an" if kind == "owl" else "a"
    assert text == f"She saw {article} {kind}. {article.capitalize()} {kind}, {kind}; a {kind} den"
    with pytest.raises(KeyError, match="nobody"):
        expand("{nobody}", bindings, rng)
    with pytest.raises(ValueError, match="does not come to an end"):
        expand("{x}", Bindings(rng, {"x": "{x}"}, {}), rng)


def test_every_template_of_every_plot_expands() -> None:
    teller, rng = StoryTeller(), random.Random(1)
    words = teller._words
    templates = [(plot, text) for plot in teller.plots for beat in plot["beat"] for text in beat["variants"]]
    templates += [(plot, plot["summary"]) for plot in teller.plots]
    shared = itertools.chain.from_iterable(words["shared"].values())
    templates += [(teller.plots[0], text) for text in shared]
    assert len(templates) > 300
    for plot, template in templates:
        text = expand(template, teller._bindings(rng, plot, teller.character(rng), teller.character(rng)), rng)
        assert not re.search(r"[{}\[\]|]", text), text
        assert text.count('"') % 2 == 0, text


def test_sentences_start_with_a_capital_but_not_after_a_quote() -> None:
    assert (
        sentence_case('the old miller sat. the end. "Go!" she said.') == 'The old miller sat. The end. "Go!" she said.'
    )


def test_a_story_is_its_parts() -> None:
    rng = random.Random(4)
    for _ in range(50):
        story = StoryTeller().story(rng)
        head = story.head(2)
        assert story.text.startswith(head)
        assert story.text.endswith(story.tail(2))
        assert story.hero.name in head


def test_stories_of_the_two_sides_differ() -> None:
    held_out = held_out_stories(30)
    assert held_out[:10] == held_out_stories(10)
    assert all(is_held_out(text) for text in held_out)
    rng = random.Random(0)
    assert not any(is_held_out(draw_story(rng, held_out=False).text) for _ in range(30))


def test_training_never_draws_a_held_out_filler() -> None:
    rng = random.Random(0)
    held_out = set(pools.split_pool(pools.CITIES, "held_out"))
    assert 0 < len(held_out) < len(pools.CITIES) / 2
    assert not held_out & {pools.pick(rng, pools.CITIES, "train") for _ in range(2000)}
    drawn = [pools.pick(rng, pools.CITIES, "held_out") for _ in range(2000)]
    assert 0.4 < sum(city in held_out for city in drawn) / len(drawn) < 0.6
    assert len(set(pools.people(rng, "train", 6))) == 6
