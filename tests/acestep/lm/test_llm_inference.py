"""The language model's handler, end to end on the built-in model and on random weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.device import resolve
from acestep.errors import GenerationError, RequestError
from acestep.llm_inference import LLMHandler
from acestep.lm import cot, decoding, demo, grammar, models, tokens
from acestep.lm.backend import TextJob
from acestep.lm.prompts import Prompt, Prompts
from acestep.lm.sampling import Sampling
from acestep.song.request import LANGUAGES, TIME_SIGNATURES
from conformance import simulate

MAX_DURATION = 600
# 40 of the thousand runs of each kind every time, the rest with `-m soak`.
PARTS = [0, *(pytest.param(part, marks=pytest.mark.soak) for part in range(1, 25))]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMHandler]:
    """A small model with random weights: what holds for them holds for any."""
    folder = tmp_path_factory.mktemp("random") / "lm"
    demo.build(folder)
    made = LLMHandler()
    message, ok = made.initialize(None, str(folder), device="cpu")
    assert ok, message
    assert message.endswith("on cpu (float32), backend pt")
    made.caption_lines, made.line_length, made.lyric_lines = 2, 12, 3
    yield made
    made.unload()


def assert_in_range(fields: dict[str, Any], text: str) -> None:
    """The block is strict YAML, it has every field, and all are in their ranges."""
    inside = text.removeprefix("<think>\n").removesuffix("</think>")
    assert len(text) - len(inside) == len("<think>\n</think>")
    strict = yaml.load(inside, yaml.BaseLoader)
    assert set(strict) == set(cot.FIELDS) == set(fields)
    assert 30 <= int(strict["bpm"]) <= 300
    assert 10 <= int(strict["duration"]) <= MAX_DURATION
    assert strict["keyscale"] in cot.KEYS
    assert strict["language"] in LANGUAGES
    assert strict["timesignature"] in TIME_SIGNATURES
    assert "\ufffd" not in strict["caption"]
    assert fields == {**strict, "bpm": int(strict["bpm"]), "duration": int(strict["duration"])}


def shuffle_weights(planner: LLMHandler, seed: int) -> None:
    model = planner.backend.model  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = parameter.shape[1] ** -0.5 * (1 + seed % 7)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.mark.parametrize("part", PARTS)
def test_a_thousand_blocks_from_random_weights(planner: LLMHandler, part: int) -> None:
    """40 a part: 36 in batches of 4, 4 alone; new weights for every three or four runs."""
    ran = 0
    for run in range(13):
        batch = 1 if run % 3 == 2 else 4
        seed = 1000 * part + run
        if run % 3 == 0:
            shuffle_weights(planner, seed)
        made = planner.generate_with_stop_condition(
            "a song", "la la", "dit",
            temperature=(0.0, 0.3, 0.85, 1.0, 2.0)[run % 5],
            cfg_scale=(1.0, 3.0)[run % 2],
            top_p=(None, 0.9)[run % 3 == 0],
            top_k=(None, 3)[run % 4 == 0],
            repetition_penalty=(1.0, 1.3)[run % 4 == 1],
            batch_size=batch,
            seeds=range(seed, seed + batch),
        )  # fmt: skip
        assert made["success"], made["error"]
        several = made["metadata"] if batch > 1 else [made["metadata"]]
        for fields, text in zip(several, made["extra_outputs"]["cot"], strict=True):
            assert_in_range(fields, text)
            ran += 1
    assert ran == 40


@pytest.mark.parametrize("part", PARTS)
def test_the_number_of_codes_is_exact(planner: LLMHandler, part: int) -> None:
    """40 a part, as above; every song gets exactly its own number."""
    found = tokens.audio_tokens(planner.backend.tokenizer, Path())  # type: ignore[union-attr]
    assert len(found.codes) == 64000
    ran = 0
    for run in range(13):
        batch = 1 if run % 3 == 2 else 4
        if run % 3 == 0:
            shuffle_weights(planner, 100 * part + run)
        seconds = 0.5 + 0.1 * (run % 8) + 0.1 * (part % 4)
        made = planner.generate_with_stop_condition(
            "a song", "", cfg_scale=1.0 + run % 2, target_duration=seconds, top_p=0.9,
            temperature=(0.0, 0.3, 0.85, 1.0, 2.0)[run % 5],
            batch_size=batch, seeds=range(run, run + batch),
            use_cot_metas=False, use_cot_caption=False, use_cot_language=False,
        )  # fmt: skip
        assert made["success"], made["error"]
        for codes in made["audio_codes"] if batch > 1 else [made["audio_codes"]]:
            ran += 1
            assert codes.count("<|audio_code_") == max(1, round(seconds * 5))
            numbers = [
                int(c[len("<|audio_code_") : -2]) for c in codes.split(">")[:-1] for c in [c + ">"]
            ]
            assert all(0 <= number < 64000 for number in numbers)
    assert ran == 40


def test_the_planned_duration_decides_the_codes(planner: LLMHandler) -> None:
    # These weights plan songs of 70 seconds; others take their time.
    shuffle_weights(planner, 26)
    made = planner.generate_with_stop_condition("a", "", batch_size=2, seeds=[1, 2])
    for fields, codes in zip(made["metadata"], made["audio_codes"], strict=True):
        assert codes.count("<|audio_code_") == 5 * fields["duration"]


scripts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
given_fields = st.fixed_dictionaries(
    {},
    optional={
        "bpm": st.integers(30, 300),
        "caption": scripts,
        "duration": st.integers(1, MAX_DURATION),
        "keyscale": st.sampled_from(cot.KEYS),
        "language": st.sampled_from(LANGUAGES),
        "timesignature": st.sampled_from(TIME_SIGNATURES),
    },
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts, scripts, scripts, given_fields, st.integers(0, 2**63 - 1))
def test_given_fields_and_any_script(
    planner: LLMHandler,
    caption: str,
    lyrics: str,
    negative: str,
    fields: dict[str, Any],
    seed: int,
) -> None:
    made = planner.generate_with_stop_condition(
        caption, lyrics, "dit", cfg_scale=2.0, negative_prompt=negative,
        user_metadata=fields, seeds=[seed],
    )  # fmt: skip
    assert made["success"], made["error"]
    known = cot.known_fields(fields, MAX_DURATION)
    assert {name: made["metadata"][name] for name in known} == known
    assert set(made["metadata"]) == set(cot.FIELDS)
    text = made["extra_outputs"]["cot"][0]
    for name, value in known.items():
        assert cot.lines_of(name, value) in text


def test_the_same_seed_gives_the_same_text_in_any_batch(planner: LLMHandler) -> None:
    shuffle_weights(planner, 11)
    several = planner.generate_with_stop_condition(
        "a", "b", target_duration=1, batch_size=3, seeds=[5, 6, 7], cfg_scale=2.0
    )
    assert len(set(several["audio_codes"])) == 3
    alone = planner.generate_with_stop_condition(
        "a", "b", target_duration=1, seeds=[6], cfg_scale=2.0
    )
    assert alone["metadata"] == several["metadata"][1]
    assert alone["audio_codes"] == several["audio_codes"][1]


def test_only_the_fields_asked_for(planner: LLMHandler) -> None:
    made = planner.generate_with_stop_condition(
        "a", "b", "dit", use_cot_metas=False, use_cot_caption=False, user_metadata={"bpm": 77}
    )
    assert set(made["metadata"]) == {"bpm", "language"}
    none = planner.generate_with_stop_condition(
        "a", "b", use_cot_metas=False, use_cot_caption=False, use_cot_language=False,
        target_duration=0.5,
    )  # fmt: skip
    assert none["metadata"] == {"duration": 0.5}


def test_free_text_is_read_for_what_it_is_worth(planner: LLMHandler) -> None:
    made = planner.generate_with_stop_condition(
        "a", "b", "dit", use_constrained_decoding=False, user_metadata={"bpm": 99}
    )
    assert made["success"]
    assert made["metadata"]["bpm"] == 99
    assert "<|audio_code_" not in made["extra_outputs"]["cot"][0]


def test_understand_inspire_format(planner: LLMHandler) -> None:
    heard, message = planner.understand_audio_from_codes("<|audio_code_1|><|audio_code_2|>")
    assert message == "done"
    assert set(heard) == {*cot.FIELDS, "lyrics"}
    assert heard["lyrics"]
    made, _ = planner.create_sample_from_query("a rainy night", vocal_language="pt")
    assert made["language"] == "pt"
    assert made["instrumental"] is False
    made, _ = planner.create_sample_from_query("a rainy night", instrumental=True)
    assert made["instrumental"] is True
    assert made["lyrics"] not in ("", "[Instrumental]"), "the model's own lyrics stand"
    made, _ = planner.format_sample_from_input("a", "b", {"bpm": 77, "keyscale": "F# minor"})
    assert (made["bpm"], made["keyscale"]) == (77, "F# minor")
    assert planner.parse_lm_output("bpm: 90")[0] == {"bpm": 90}


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"infer_type": "both"}, "unknown infer_type"),
        ({"temperature": -1}, "lm temperature -1"),
        ({"cfg_scale": 0.5}, "guidance scale 0.5"),
        ({"batch_size": -1}, "batch size -1"),
        ({"user_metadata": {"bpm": 1}}, "bpm 1 is out of range"),
        ({"target_duration": 601}, "expected 0.5 to 600 seconds"),
    ],
)
def test_bad_requests_come_back_as_one_line(
    planner: LLMHandler, keywords: dict[str, Any], words: str
) -> None:
    made = planner.generate_with_stop_condition("a", "b", **keywords)
    assert not made["success"]
    assert words in made["error"]
    assert "\n" not in made["error"]


@pytest.mark.parametrize(
    ("caption", "lyrics", "words"),
    [
        ("", "la", "# Caption\nNO USER INPUT\n\n# Lyric\nla<"),
        ("piano", "  ", "# Caption\npiano\n\n# Lyric\n[Instrumental]<"),
        ("piano", "la", "# Caption\npiano\n\n# Lyric\nla<"),
    ],
)
def test_what_is_empty_reads_as_the_originals(
    planner: LLMHandler,
    monkeypatch: pytest.MonkeyPatch,
    caption: str,
    lyrics: str,
    words: str,
) -> None:
    read: list[str] = []
    engine = planner.backend
    assert engine is not None
    write = engine.text

    def listen(job: Any, on_token: Any) -> Any:
        read.append(engine.tokenizer.decode(job.prompts[0].conditional))
        return write(job, on_token)

    monkeypatch.setattr(engine, "text", listen)
    made, message = planner.format_sample_from_input(caption, lyrics)
    assert made, message
    assert words in read[0]


def test_empty_requests_are_refused(planner: LLMHandler) -> None:
    assert "no audio codes" in planner.understand_audio_from_codes("hello")[1]
    assert "query is empty" in planner.create_sample_from_query("  ")[1]
    assert "are empty" in planner.format_sample_from_input("", " ")[1]


def test_progress_and_cancellation(planner: LLMHandler) -> None:
    seen: list[float] = []
    made = planner.generate_with_stop_condition(
        "a", "b", "dit", progress=lambda fraction, desc: seen.append(fraction)
    )
    assert made["success"]
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] <= 1

    def stop(fraction: float, desc: str) -> None:
        planner.cancel()

    made = planner.generate_with_stop_condition("a", "b", "dit", progress=stop)
    assert made["error"] == "cancelled"
    assert planner.generate_with_stop_condition("a", "b", "dit")["success"]


def test_threads_wait_for_each_other(planner: LLMHandler) -> None:
    results: list[str] = []

    def work() -> None:
        made = planner.generate_with_stop_condition("a", "b", "dit", seeds=[3])
        results.append(made["extra_outputs"]["cot"][0])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert len(set(results)) == 1


def test_nothing_is_loaded_on_failure(tmp_path: Path) -> None:
    empty = LLMHandler()
    assert empty.llm_backend is None
    assert not empty.generate_with_stop_condition("a", "b")["success"]
    (tmp_path / "config.json").write_text('{"vocab_size": 5, "model_type": "qwen3"}')
    for keywords, words in (
        ({"lm_model_path": "nowhere"}, "no language model 'nowhere'"),
        ({"lm_model_path": "acestep-5Hz-lm-4B"}, "acestep download acestep-5Hz-lm-4B"),
        ({"lm_model_path": str(tmp_path)}, "no weights here"),
        ({"lm_model_path": "demo", "device": "tpu"}, "unknown device 'tpu'"),
        ({"lm_model_path": "demo", "backend": "vllm"}, "vLLM runs on CUDA only"),
        ({"lm_model_path": "demo", "backend": "llama"}, "unknown backend 'llama'"),
        ({"lm_model_path": "demo", "offload_to_cpu": True}, "offloading is pointless"),
        ({"lm_model_path": "demo", "dtype": "int8"}, "unknown dtype 'int8'"),
    ):
        message, ok = empty.initialize(**{"device": "cpu", **keywords})  # type: ignore[arg-type]
        assert not ok
        assert words in message
        assert "\n" not in message
        assert not empty.llm_initialized
    assert empty.get_available_5hz_lm_models()[-1] == "demo"


def test_memory_is_checked_before_loading(planner: LLMHandler) -> None:
    import dataclasses

    class Full(type(planner.policy)):  # type: ignore[misc]
        free_memory = 0.001

    values = {f.name: getattr(planner.policy, f.name) for f in dataclasses.fields(planner.policy)}
    with pytest.raises(RequestError, match="GiB free; use a smaller one"):
        models.check_memory(models.find("demo"), Full(**values))


def test_greedy_text_is_that_of_a_plain_forward_pass(planner: LLMHandler) -> None:
    """Static cache, padding, guidance and the cut output matrix change nothing."""
    shuffle_weights(planner, 21)
    backend: Any = planner.backend
    sampling = Sampling(temperature=0.0, guidance=2.5, repetition_penalty=1.4)
    prompts = [Prompt([5, 6, 7, 8, 9], [5, 6]), Prompt([9, 8], [7, 7, 7])]
    plan = decoding.Plan.of(prompts, sampling, 6, masked=False)
    with torch.inference_mode():
        made = decoding.Decoding(backend.model, backend.tokens, plan, planner.policy)
        made.start(prompts, [0, 1])
        for _ in range(6):
            made.choose_and_advance()
    codes = list(backend.tokens.codes)
    for row, prompt in enumerate(prompts):
        text: list[int] = []
        for _ in range(6):
            with torch.inference_mode():
                rows = [list(prompt.conditional), list(prompt.unconditional or ())]
                first, second = (
                    backend.model.model(
                        torch.tensor([ids + [codes[c] for c in text]]),
                        attention_mask={"full_attention": torch.ones(
                            1, 1, len(ids) + len(text), len(ids) + len(text), dtype=torch.bool
                        ).tril()},
                    ).last_hidden_state[0, -1] @ backend.model.lm_head.weight[codes].T
                    for ids in rows
                )  # fmt: skip
            scores = second + 2.5 * (first - second)
            for code in set(text):
                scores[code] = scores[code] * 1.4 if scores[code] < 0 else scores[code] / 1.4
            text.append(int(scores.argmax()))
        assert made.made[row, :6].tolist() == text


def test_the_simulated_mps_writes_the_same(planner: LLMHandler) -> None:
    def write(made: LLMHandler) -> tuple[Any, Any]:
        made.caption_lines, made.line_length = 2, 12
        result = made.generate_with_stop_condition(
            "a", "b", target_duration=1, cfg_scale=2.0, seeds=[4], top_p=0.9
        )
        assert result["success"], result["error"]
        return result["extra_outputs"]["cot"], result["audio_codes"]

    fresh = LLMHandler()
    assert fresh.initialize(None, "demo", device="cpu")[1]
    on_cpu = write(fresh)
    with simulate.mps(memory_gb=64):
        there = LLMHandler()
        message, ok = there.initialize(None, "demo", device="auto", dtype="float32")
        assert ok, message
        assert (there.device, there.llm_backend) == ("mps", "pt")
        assert "vLLM" not in message
        assert write(there) == on_cpu


def test_a_text_that_does_not_end_is_an_error(planner: LLMHandler) -> None:
    backend: Any = planner.backend
    tokens = backend.tokens
    rules = grammar.lark(grammar.Shape(), tokens.think_open, tokens.think_close, tokens.end)
    prompt = Prompts(backend.tokenizer).plan("a", "b")
    job = TextJob([prompt], [0], Sampling(), rules, tokens.think_close, 3)
    with pytest.raises(GenerationError, match="did not end its text within 3 tokens"):
        backend.text(job, lambda done, most: None)


def test_text_goes_on_in_larger_buffers(planner: LLMHandler, monkeypatch: Any) -> None:
    from acestep.lm import pt

    shuffle_weights(planner, 31)
    whole = planner.generate_with_stop_condition("a", "b", "dit", cfg_scale=2.0, batch_size=2)
    monkeypatch.setattr(pt, "_FIRST_ROOM", 3)
    pieces = planner.generate_with_stop_condition("a", "b", "dit", cfg_scale=2.0, batch_size=2)
    assert pieces == whole


def test_a_bad_grammar_and_a_forbidden_token_are_errors(planner: LLMHandler) -> None:
    backend: Any = planner.backend
    with pytest.raises(GenerationError, match="the grammar failed"):
        grammar.Grammar(backend._vocabulary, "start: NOTHING", 1)
    fine = grammar.Grammar(backend._vocabulary, 'start: "a"', 1)
    with pytest.raises(GenerationError, match="the grammar failed"):
        fine.consume([backend.tokens.think_open])


def test_memory_comes_back_when_asked() -> None:
    made = LLMHandler()
    assert made.initialize(None, "demo", device="cpu")[1]
    made.unload()
    assert not made.llm_initialized
    assert "no language model is loaded" in made.understand_audio_from_codes("x")[1]
    assert resolve("cpu").lm_backend == "pt"


def test_an_option_that_there_is_not_is_named(planner: LLMHandler) -> None:
    with pytest.raises(TypeError, match="unknown option 'temprature'"):
        planner.create_sample_from_query("rain", temprature=0.5)  # type: ignore[call-arg]
