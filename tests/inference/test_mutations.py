"""The comparison with `generate` has power: every fault put in by hand is seen."""

from dataclasses import replace

import msgspec
import pytest
import torch

from inference import dense_attention
from inference.sequence import Sequence

NAMES = ["text", "one picture", "three pictures", "tall picture", "video", "picture and video"]
VISUAL = set(NAMES) - {"text"}


class Bench:
    """An engine to break, and a comparison of all cases run together in small chunks."""

    def __init__(self, kit, model, cases, expected):
        self.kit, self.model, self.cases, self.expected = kit, model, cases, expected
        self.engine = kit.make_engine(model, max_num_batched_tokens=9)
        self.runner = self.engine.runner

    def wrong(self):
        """The cases whose tokens are not those of `generate`."""
        for name in NAMES:
            self.engine.add(self.kit.owner, self.kit.generate(self.cases[name], name))
        answers = self.kit.run(self.engine)
        return {name for name in NAMES if answers.token_ids[name, 0] != self.expected[name]}

    def change_features(self, change):
        """Put `change` between the cache of encoded pictures and the decoder."""
        find = self.runner._visual_rows

        def changed(chunks):
            visual = find(chunks)
            return visual and visual._replace(features=change(visual.features.clone()))

        self.runner._visual_rows = changed

    def change_plan(self, change):
        plan = self.runner._attention.plan
        self.runner._attention.plan = lambda rows: change(plan(rows))

    def change_attend(self, change):
        attend = self.runner._attention.attend
        self.runner._attention.attend = lambda *arguments: attend(*change(*arguments))


def is_seen(wrong, touched):
    """A fault shows in most of what it touches (not every argmax turns) and nowhere else."""
    return len(wrong) > len(touched) / 2 and wrong <= touched


@pytest.fixture
def bench(kit, models, cases, expected):
    return Bench(kit, models["dense"], cases, expected["dense"])


def test_nothing_changed_nothing_wrong(bench):
    assert bench.wrong() == set()


def test_deepstack_left_out(bench):
    def change(features):
        features[:, 1:] = 0
        return features

    bench.change_features(change)

    assert is_seen(bench.wrong(), VISUAL)


def test_deepstack_in_the_wrong_order(bench):
    bench.change_features(lambda f: torch.cat((f[:, :1], f[:, 1:].flip(1)), dim=1))

    assert is_seen(bench.wrong(), VISUAL)


def test_features_one_row_off(bench):
    bench.change_features(lambda features: features.roll(1, dims=0))

    assert is_seen(bench.wrong(), VISUAL)


def test_rope_delta_forgotten(bench, monkeypatch):
    from inference import runner

    place = runner.prompt_positions
    monkeypatch.setattr(runner, "prompt_positions", lambda *request: (place(*request)[0], 0))

    assert bench.wrong() >= {"one picture", "three pictures", "video"}


def test_rope_delta_of_another_request(bench):
    find = bench.runner._placement
    latest = []

    def placement(request):
        if request not in bench.runner._placements:
            latest.append(find(request).rope_delta)
        return replace(find(request), rope_delta=latest[-1])

    bench.runner._placement = placement

    assert len(bench.wrong()) >= 2


def test_slots_one_off(bench):
    def change(plan):
        size = bench.engine.limits.num_blocks * bench.engine.limits.block_size
        return replace(plan, slots=(plan.slots + 1) % size)

    bench.change_plan(change)

    assert is_seen(bench.wrong(), set(NAMES))


def test_a_continued_chunk_that_sees_what_comes(bench, monkeypatch):
    attend = dense_attention.attend

    def acausal(q, k, v, ops, *, scale, first):
        return attend(q, k, v, ops, scale=scale, first=k.shape[1] if first else 0)

    monkeypatch.setattr(dense_attention, "attend", acausal)

    assert is_seen(bench.wrong(), set(NAMES))


def test_two_layers_in_one_pool(bench):
    bench.change_attend(lambda layer, *rest: (max(layer, 1), *rest))

    assert is_seen(bench.wrong(), set(NAMES))


def test_keys_and_values_swapped(bench):
    bench.change_attend(lambda layer, q, k, v, plan: (layer, q, v, k, plan))

    assert is_seen(bench.wrong(), set(NAMES))


def test_query_and_key_norms_swapped(bench, monkeypatch):
    text = bench.model.text
    heads, kv_heads = text.geometry.num_heads, text.geometry.num_kv_heads

    def swapped(layer):
        query, key = layer.head_norm[0], layer.head_norm[-1]
        norms = torch.stack([key] * heads + [query] * kv_heads)
        return replace(layer, head_norm=norms)

    monkeypatch.setattr(text, "layers", tuple(swapped(layer) for layer in text.layers))

    assert is_seen(bench.wrong(), set(NAMES))


def test_a_prefix_key_that_does_not_know_the_picture(bench, monkeypatch):
    """The proof that the cache's tests would see a wrong hit: here is one."""
    make_key = Sequence._next_block_key

    def blind(sequence):
        request = sequence.request
        visions = request.visions
        request.visions = [msgspec.structs.replace(v, content_hash=bytes(32)) for v in visions]
        try:
            return make_key(sequence)
        finally:
            request.visions = visions

    monkeypatch.setattr(Sequence, "_next_block_key", blind)
    kit, engine = bench.kit, bench.kit.make_engine(bench.model)
    text = kit.text(6, 1)
    answers = kit.answers()
    for number in (1, 2):
        request = kit.case(kit.picture(3, 4, number), text)
        engine.add(kit.owner, kit.generate(request, f"{number}"))
        kit.run(engine, answers)

    engine = kit.make_engine(bench.model)
    engine.add(kit.owner, kit.generate(request, "alone"))
    alone = kit.run(engine).token_ids["alone", 0]
    assert engine.stats().prefix_cache_hits == 0
    assert answers.token_ids["2", 0] != alone
