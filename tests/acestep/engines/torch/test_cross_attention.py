"""Capture of cross-attention: equal to the model's own weights, and leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models import AceStepTransformer1DModel
from diffusers.models.attention_dispatch import attention_backend

from acestep.alignment.heads import DEMO_HEADS, TURBO_HEADS, alignment_heads, parse_heads
from acestep.engines.torch.cross_attention import capture_cross_attention
from acestep.errors import CheckpointError, RequestError

HEADS = {1: [0, 3], 2: [1]}


def made_with(layers: int) -> Any:
    torch.manual_seed(0)
    made = AceStepTransformer1DModel(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=3,
    )
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Any:
    return made_with(4)


def inputs(batch: int = 1, frames: int = 16, tokens: int = 7, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": draw(batch, frames, 4),
        "context_latents": draw(batch, frames, 8),
        "encoder_hidden_states": 3 * draw(batch, tokens, 32),
        "timestep": torch.full((batch,), 0.25),
        "timestep_r": torch.full((batch,), 0.25),
    }


def own_weights(model: Any, layer: int, given: dict[str, Any]) -> torch.Tensor:
    """All heads of a layer, `[batch, heads, tokens, frames]`, by asking the model's own
    attention for its output on values that spell out each token."""
    attention = model.layers[layer].cross_attn
    seen: list[torch.Tensor] = []

    def spell(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        tokens = output.shape[1]
        assert tokens <= module.out_features // attention.kv_heads
        one_hot = torch.eye(tokens, attention.head_dim).repeat(1, attention.kv_heads)
        return one_hot.expand_as(output).contiguous()

    def read(module: Any, args: tuple[torch.Tensor]) -> None:
        seen.append(args[0])

    hooks = [
        attention.to_v.register_forward_hook(spell),
        attention.to_out[0].register_forward_pre_hook(read),
    ]
    try:
        model(**given)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = given["encoder_hidden_states"].shape[1]
    weights = seen[0].unflatten(-1, (attention.heads, attention.head_dim))[..., :tokens]
    return weights.permute(0, 2, 3, 1)


def state_of(model: Any) -> list[Any]:
    return [
        model.layers,
        len(model.layers),
        *(layer.cross_attn.processor for layer in model.layers),
    ]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("frames", [2, 15, 16])
def test_weights_are_those_the_model_uses(model: Any, batch: int, frames: int) -> None:
    given = inputs(batch, frames)
    captured = capture_cross_attention(model, given, HEADS)
    assert captured.shape == (batch, 3, 7, (frames + 1) // 2)
    expected = torch.cat(
        [own_weights(model, 1, given)[:, [0, 3]], own_weights(model, 2, given)[:, [1]]], 1
    )
    torch.testing.assert_close(captured, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(captured.sum(2), torch.ones(batch, 3, (frames + 1) // 2))


def test_each_item_of_a_batch_is_what_it_is_alone(model: Any) -> None:
    together = inputs(batch=2)
    captured = capture_cross_attention(model, together, HEADS)
    for index in range(2):
        alone = {name: value[index : index + 1] for name, value in together.items()}
        torch.testing.assert_close(
            captured[index : index + 1], capture_cross_attention(model, alone, HEADS)
        )


def test_tokens_are_cut_after_normalisation(model: Any) -> None:
    whole = capture_cross_attention(model, inputs(), HEADS)
    part = capture_cross_attention(model, inputs(), HEADS, slice(2, 5))
    assert torch.equal(part, whole[:, :, 2:5])


def test_layers_after_the_last_needed_do_not_run(model: Any) -> None:
    ran: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, index=index: ran.append(index))
        for index, layer in enumerate(model.layers)
    ]
    try:
        capture_cross_attention(model, inputs(), {0: [0], 1: [1]})
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [0, 1]


def test_model_is_left_as_found(model: Any) -> None:
    before, output = state_of(model), model(**inputs()).sample
    capture_cross_attention(model, inputs(), HEADS)
    assert all(a is b for a, b in zip(before, state_of(model), strict=True))
    assert torch.equal(model(**inputs()).sample, output)


def test_model_is_left_as_found_after_an_exception(model: Any) -> None:
    before = state_of(model)

    def fail(module: Any, args: Any) -> None:
        raise MemoryError("no memory left")

    hook = model.layers[2].mlp.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError):
            capture_cross_attention(model, inputs(), HEADS)
    finally:
        hook.remove()
    assert all(a is b for a, b in zip(before, state_of(model), strict=True))


def test_gradients_are_not_recorded(model: Any) -> None:
    model.requires_grad_(True)
    try:
        assert not capture_cross_attention(model, inputs(), HEADS).requires_grad
    finally:
        model.requires_grad_(False)


def test_bfloat16_model_gives_float32_weights(model: Any) -> None:
    exact = capture_cross_attention(model, inputs(), HEADS)
    half = {name: value.bfloat16() for name, value in inputs().items()}
    model.to(torch.bfloat16)
    try:
        captured = capture_cross_attention(model, half, HEADS)
    finally:
        model.to(torch.float32)
    assert captured.dtype == torch.float32
    torch.testing.assert_close(captured, exact, rtol=0.0, atol=0.06)
    torch.testing.assert_close(captured.sum(2), torch.ones(1, 3, 8))


def test_attention_backend_of_the_model_is_kept(model: Any) -> None:
    exact = capture_cross_attention(model, inputs(), HEADS)
    with attention_backend("_native_math"):
        other = capture_cross_attention(model, inputs(), HEADS)
    torch.testing.assert_close(other, exact)


def test_attention_mask_is_followed(model: Any) -> None:
    """No layer passes one today; a processor must still not ignore it."""
    attention = model.layers[1].cross_attn
    keep = torch.tensor([True, False, True, True, True, True, False])[None, None, None]
    additive = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)

    def masked_by(mask: torch.Tensor) -> torch.Tensor:
        def add_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": mask}

        hook = attention.register_forward_pre_hook(add_mask, with_kwargs=True)
        try:
            return capture_cross_attention(model, inputs(), {1: [0]})
        finally:
            hook.remove()

    captured = masked_by(keep)
    assert captured[0, 0, [1, 6]].abs().max() == 0
    torch.testing.assert_close(captured.sum(2), torch.ones(1, 1, 8))
    assert torch.equal(masked_by(additive), captured)


@pytest.mark.parametrize("how", ["wrapped", "in place", "by layers"])
def test_compiled_model_is_read_eagerly_and_not_compiled_again(how: str) -> None:
    compiled_graphs: list[int] = []
    # What is compiled is traced layer by layer, which takes long.
    model, heads = made_with(2), {0: [1], 1: [0, 3]}

    def backend(graph: Any, example: Any) -> Any:
        compiled_graphs.append(1)
        return graph.forward

    expected = capture_cross_attention(model, inputs(), heads)
    torch.compiler.reset()
    runner = torch.compile(model, backend=backend) if how == "wrapped" else model
    parts = {"wrapped": [], "in place": [model], "by layers": model.layers}[how]
    try:
        for part in parts:
            part.compile(backend=backend)
        output = runner(**inputs()).sample
        graphs = len(compiled_graphs)
        assert graphs > 0
        torch.testing.assert_close(capture_cross_attention(runner, inputs(), heads), expected)
        torch.testing.assert_close(runner(**inputs()).sample, output)
        assert len(compiled_graphs) == graphs
    finally:
        for part in parts:
            part._compiled_call_impl = None
        torch.compiler.reset()


@pytest.mark.parametrize("heads", [{4: [0]}, {0: [4]}, {1: [0, 9]}])
def test_heads_that_do_not_exist_are_named(model: Any, heads: dict[int, list[int]]) -> None:
    with pytest.raises(RequestError, match="does not exist: this model has 4 layers of 4 heads"):
        capture_cross_attention(model, inputs(), heads)


@pytest.mark.parametrize(
    "heads", [{}, {1: []}, {-1: [0]}, {1: [-2]}, {"a": [1]}, {1: ["x"]}, [1, 2], {1: 2}]
)
def test_broken_tables_are_refused(model: Any, heads: Any) -> None:
    with pytest.raises(RequestError):
        capture_cross_attention(model, inputs(), heads)


def test_tables_of_known_checkpoints() -> None:
    assert alignment_heads("acestep-v15-turbo") == {2: [6], 3: [10, 11], 4: [3], 5: [8, 9], 6: [8]}
    assert alignment_heads("turbo") == TURBO_HEADS
    assert alignment_heads("demo") == DEMO_HEADS


@pytest.mark.parametrize("name", ["acestep-v15-xl-turbo-diffusers", "acestep-v15-base", "mine"])
def test_checkpoint_without_a_table_needs_an_override(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}'"):
        alignment_heads(name)
    assert alignment_heads(name, {"3": [1, 2]}) == {3: [1, 2]}


def test_a_returned_table_may_be_changed() -> None:
    alignment_heads("turbo")[2].append(99)
    assert alignment_heads("turbo")[2] == [6]


def test_heads_as_text() -> None:
    assert parse_heads("2:6 3:10,11 2:7") == {2: [6, 7], 3: [10, 11]}


@pytest.mark.parametrize("text", ["", "2", "2:", "a:1", "2:1,", "2:-1", "2:1;3:2"])
def test_heads_as_bad_text(text: str) -> None:
    with pytest.raises(RequestError):
        parse_heads(text)
