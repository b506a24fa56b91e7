"""The studio without a page: songs are made, kept for their visitor, cancelled, refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from acestep.errors import RequestError
from acestep.gradio_ui.engines import Engines
from acestep.gradio_ui.jobs import CANCELLED, DONE, FAILED, Job
from acestep.gradio_ui.limits import Limits
from acestep.gradio_ui.settings import PageOptions
from acestep.gradio_ui.song_request import SongRequest
from acestep.gradio_ui.store import StoredSong
from acestep.gradio_ui.studio import Studio, Visitor
from acestep.handler import AceStepHandler

ANNA = Visitor("a" * 32, "10.0.0.1")
BERT = Visitor("b" * 32, "10.0.0.2")
SHORT = SongRequest(prompt="warm piano", duration=1, steps=2, seed=5)


def ended(job: Job) -> Job:
    assert job.finished.wait(120)
    return job


def test_a_song_with_lyrics_is_made_and_kept(studio: Studio) -> None:
    lyrics = "[verse]\nhello there\nworld"
    request = SongRequest.of({**vars(SHORT), "lyrics": lyrics, "batch": 1})
    job = ended(studio.make(ANNA, request))
    assert job.state == DONE, job.error
    (song,) = studio.store.list(ANNA.name)
    assert job.result == [song.id]
    path = studio.store.path(ANNA.name, song.id, song.audio)
    assert path is not None
    assert soundfile.info(path).duration == pytest.approx(1.0, abs=0.05)
    assert song.seed == 5
    assert [text for _, _, text in song.lines] == ["[verse]", "hello there", "world"]
    assert (song.score, song.wordless) == (None, True)
    assert "cannot sing" in song.warnings[-1]
    assert set(song.files) >= {"song.lrc", "song.json", "alignment.png", "spectrogram.png"}
    parameters = studio.store.path(ANNA.name, song.id, "song.json")
    assert parameters is not None
    assert json.loads(parameters.read_bytes())["seed"] == 5
    assert SongRequest.of(song.asked) == request
    assert studio.store.list(BERT.name) == []


def test_a_checkpoint_that_sings_is_scored_and_hears_recordings(
    handler: AceStepHandler, engines: Engines, tmp_path: Path, song_file: Path
) -> None:
    """The built-in engine under another's name stands for one that sings."""
    assert handler.checkpoint is not None
    singer = AceStepHandler()
    singer.engine, singer.policy, singer.maker = handler.engine, handler.policy, handler.maker
    singer.checkpoint = replace(handler.checkpoint, builtin=False)
    options = PageOptions.of({"config_path": "demo", "device": "cpu"})
    studio = Studio(options, Engines(singer), tmp_path / "page")
    job = ended(studio.make(ANNA, replace(SHORT, lyrics="hello there\nworld")))
    (song,) = studio.store.list(ANNA.name)
    assert song.score is not None, job.error
    assert not song.wordless
    recording = studio.uploads / "chord.wav"
    recording.write_bytes(song_file.read_bytes())
    asked = SongRequest(lyrics="[verse]\nhello there\nworld", source_file=str(recording))
    job = ended(studio.align(ANNA, asked))
    assert job.state == DONE, job.error
    heard = studio.store.get(ANNA.name, job.result[0])
    assert heard is not None
    assert (heard.kind, heard.title) == ("align", "chord")
    assert [text for _, _, text in heard.lines] == ["[verse]", "hello there", "world"]
    assert heard.score is not None
    assert set(heard.files) >= {"song.flac", "song.lrc", "alignment.png", "song.json"}
    for wrong, words in (
        (replace(asked, source_file=None), "no recording"),
        (replace(asked, lyrics="[verse]\n"), "nothing to time"),
    ):
        with pytest.raises(RequestError, match=words):
            studio.align(ANNA, wrong)
    with pytest.raises(RequestError, match="cannot sing, so it hears no words"):
        Studio(options, engines, tmp_path / "toy").align(ANNA, asked)
    studio.line.close()


def test_an_adapter_is_put_on_and_taken_off(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    transformer = studio.engines.dit.pipeline.transformer
    name = next(n for n, m in transformer.named_modules() if n.endswith("to_q"))
    width = transformer.get_submodule(name).weight.shape
    folder = tmp_path / "checkpoints" / "loras"
    folder.mkdir(parents=True)
    factors = {"A": torch.ones(1, width[1]), "B": torch.ones(width[0], 1)}
    tensors = {f"{name}.lora_{key}.weight": value for key, value in factors.items()}
    save_file(tensors, folder / "loud.safetensors")
    (folder / "notes.txt").write_text("no adapter")
    monkeypatch.setenv("ACESTEP_CHECKPOINTS", str(tmp_path / "checkpoints"))
    assert studio.engines.abilities("demo").adapters == ("loud",)

    def made(**lora: Any) -> tuple[Any, StoredSong]:
        job = ended(studio.make(ANNA, replace(SHORT, **lora)))
        assert job.state == DONE, job.error
        song = studio.store.get(ANNA.name, job.result[0])
        assert song is not None
        return soundfile.read(studio.store.path(ANNA.name, song.id, "song.flac"))[0], song

    plain, song = made()
    assert "lora" not in song.made
    adapted, song = made(lora="loud")
    assert song.made["lora"] == {"name": "loud", "scale": 1.0}
    assert not np.array_equal(plain, adapted)
    half, _ = made(lora="loud", lora_scale=0.5)
    assert not np.array_equal(half, adapted)
    assert np.array_equal(made()[0], plain)
    job = ended(studio.make(ANNA, replace(SHORT, lora="../loras/loud")))
    assert job.state == FAILED
    assert job.error == "there is no adapter '../loras/loud' here; choose one from the list"
    with pytest.raises(RequestError, match="LoRA scale 5"):
        studio.make(ANNA, replace(SHORT, lora="loud", lora_scale=5.0))


def test_time_left_is_believable(studio: Studio) -> None:
    """Of songs of other lengths than those it learnt from, told at every step."""
    for seconds in (3, 6):
        ended(studio.make(ANNA, replace(SHORT, duration=seconds, steps=4)))
    job = studio.make(ANNA, replace(SHORT, duration=20, steps=8))
    told = []
    while job.active:
        left, now, done = job.seconds_left, time.monotonic(), job.fraction
        if left is not None:
            told.append((now, left, done))
        time.sleep(0.01)
    assert job.state == DONE, job.error
    assert job.ended is not None
    assert [done for _, _, done in told] == sorted(done for _, _, done in told)
    middle = [left / max(job.ended - now, 0.05) for now, left, done in told if 0.2 < done < 0.8]
    assert middle
    assert 0.4 < sorted(middle)[len(middle) // 2] < 2.5


@pytest.mark.parametrize("end", [-1.0, 0.0])
def test_an_end_of_minus_one_is_the_sources(end: float) -> None:
    asked = SongRequest.of(
        {"prompt": "x", "task": "repaint", "source_song": "0", "repaint_end": end}
    )
    params, _ = asked.checked(Limits()).params()
    assert params.repainting_end == -1
    early = replace(asked, repaint_start=-2.0, repaint_end=-1.0).checked(Limits()).params()[0]
    assert (early.repainting_start, early.repainting_end) == (-2.0, -1.0)


def test_the_same_seed_makes_the_same_song(studio: Studio) -> None:
    jobs = [ended(studio.make(ANNA, SHORT)) for _ in range(2)]
    first, second = (
        soundfile.read(studio.store.path(ANNA.name, job.result[0], "song.flac"))[0] for job in jobs
    )
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(second))


def test_a_song_can_be_the_source_of_a_repaint(studio: Studio) -> None:
    first = ended(studio.make(ANNA, SHORT)).result[0]
    request = SongRequest(
        prompt="strings", steps=2, seed=1, task="repaint", source_song=first, repaint_end=0.5
    )
    job = ended(studio.make(ANNA, request))
    assert job.state == DONE, job.error
    with pytest.raises(RequestError, match="not there any more"):
        studio.make(BERT, request)


def test_cancelling_frees_the_device(studio: Studio) -> None:
    request = SongRequest(prompt="endless", duration=60, steps=100, seed=1)
    running, waiting = studio.make(ANNA, request), studio.make(ANNA, SHORT)
    deadline = time.monotonic() + 60
    while "step" not in running.stage and time.monotonic() < deadline:
        time.sleep(0.01)
    assert studio.line.place(waiting) == 1
    assert studio.line.cancel(BERT.name) == []
    assert studio.line.cancel(ANNA.name, running.id) == [running]
    assert ended(running).state == CANCELLED
    assert ended(waiting).state == DONE, waiting.error
    assert len(studio.store.list(ANNA.name)) == 1
    assert not list(studio.store.root.glob(".work-*"))


def test_a_failure_is_a_sentence_and_the_line_goes_on(studio: Studio) -> None:
    request = SongRequest(prompt="x", duration=1, steps=2, task="extract", source_song="0" * 16)
    with pytest.raises(RequestError):
        studio.make(ANNA, request)
    first = ended(studio.make(ANNA, SHORT)).result[0]
    failed = ended(studio.make(ANNA, SongRequest(prompt="x", task="lego", source_song=first)))
    assert failed.state == FAILED
    assert failed.error is not None
    assert "lego" in failed.error
    assert ended(studio.make(ANNA, SHORT)).state == DONE


def test_limits_of_a_visitor_and_an_address(make_studio: Callable[..., Studio]) -> None:
    studio = make_studio(Limits(waiting=3, waiting_per_visitor=1, waiting_per_address=2))
    long = SongRequest(prompt="x", duration=60, steps=100)
    studio.make(ANNA, long)
    with pytest.raises(RequestError, match="you have 1 requests in the queue"):
        studio.make(ANNA, long)
    studio.make(Visitor("c" * 32, ANNA.address), long)
    with pytest.raises(RequestError, match="from your address"):
        studio.make(Visitor("d" * 32, ANNA.address), long)
    studio.make(BERT, long)
    with pytest.raises(RequestError, match="queue is full"):
        studio.make(Visitor("e" * 32, "10.0.0.9"), long)


def test_a_fixed_service_is_not_changed(make_studio: Callable[..., Studio]) -> None:
    studio = make_studio(service_mode=True)
    with pytest.raises(RequestError, match="fixed configuration"):
        studio.start(ANNA, studio.choice)
    with pytest.raises(RequestError, match="fixed configuration"):
        studio.stop(ANNA)


def test_uploads_are_taken_from_their_folder_only(studio: Studio, song_file: Path) -> None:
    request = SongRequest(prompt="x", task="cover", source_file=str(song_file))
    with pytest.raises(RequestError, match="not uploaded here"):
        studio.make(ANNA, request)
    inside = studio.uploads / "chord.wav"
    inside.write_bytes(song_file.read_bytes())
    job = ended(
        studio.make(ANNA, SongRequest(prompt="x", steps=2, task="cover", source_file=str(inside)))
    )
    assert job.state == DONE, job.error


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"audio_format": "flac", "bit_depth": "32"}, "flac cannot have a bit depth of 32"),
        ({"audio_format": "mp3", "bitrate": 300}, "mp3 has no bit rate of 300 kbit/s"),
        ({"audio_format": "exe"}, "unknown format"),
        ({"loudness": -60}, "loudness -60 is out of range"),
    ],
)
def test_kinds_of_file_that_there_are_not(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        SongRequest.of({"prompt": "x", **values}).checked(Limits())


def test_a_kind_of_file_from_the_form() -> None:
    values = {"prompt": "x", "audio_format": "wav", "bit_depth": "24", "bitrate": 0, "loudness": 0}
    _, config = SongRequest.of(values).checked(Limits()).params()
    assert config.encoding().subtype == "PCM_24"
    assert config.audio_loudness is None
