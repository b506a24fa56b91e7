"""Tests of batches: what a line may say, what a kill leaves behind, and what is made again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.acestep_v15_pipeline import main
from acestep.batch import jobs as jobs_module
from acestep.batch.jobs import ENDED, JOURNAL, Job, Journal, Made, read_jobs, remaining
from acestep.batch.pools import AheadPool, InlinePool, Outcome
from acestep.batch.run import DEATHS, Progress, run
from acestep.batch.worker import Setting, Worker, unplanned
from acestep.cli import batch as batch_command
from acestep.errors import RequestError

SHORT = {"duration": 0.5, "inference_steps": 1}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def jobs_of(count: int) -> list[Job]:
    return [Job(f"{number:03d}", {"caption": "x", "seed": number}) for number in range(count)]


def made_of(job: Job) -> Made:
    return Made(job.name.encode(), {"seconds": 2.0, "seed": job.params["seed"]}, 0.1)


class ScriptedPool:
    """Does jobs out of order and as a script says: a reason, a death, or the end of the run."""

    room = 3

    def __init__(self, script: dict[str, list[Any]], order: int = 0) -> None:
        self.script, self.order = script, order
        self.queue: deque[Job] = deque()
        self.taken: list[str] = []
        self.closed = False

    def submit(self, job: Job) -> None:
        assert len(self.queue) < self.room
        self.queue.append(job)
        self.taken.append(job.name)

    def wait(self) -> tuple[Job, Outcome]:
        self.queue.rotate(self.order)
        job = self.queue.popleft()
        planned = self.script.get(job.name, [])
        outcome = planned.pop(0) if planned else made_of(job)
        if isinstance(outcome, BaseException):
            raise outcome
        return job, outcome

    def close(self) -> None:
        self.closed = True


def finished(jobs: list[Job], folder: Path, pool: ScriptedPool) -> Progress:
    journal = Journal(folder, "flac")
    with journal.locked():
        return run(jobs, journal, lambda: pool, lambda progress: None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", ":2: not JSON"),
        ("[]", ":2: expected an object with a caption"),
        ({"caption": " "}, ":2: expected an object with a caption"),
        ({"caption": "x", "tempo": 3}, ":2: unknown field 'tempo'; known: task_type"),
        ({"caption": "x", "id": "../up"}, ":2: the id '../up' cannot name a file"),
        ({"caption": "x", "id": "one"}, ":2: the id 'one' is taken by another line"),
        ({"caption": "x", "seed": "one"}, ":2: the seed must be a whole number"),
        ({"caption": "x", "seed": "1,2"}, ":2: the seed must be a whole number"),
        ({"caption": "x", "seed": True}, ":2: the seed must be a whole number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, expected: str) -> None:
    path = written(tmp_path / "p.jsonl", {"caption": "first", "id": "one"}, line)
    with pytest.raises(RequestError) as caught:
        read_jobs(path)
    assert str(caught.value).startswith(f"{path}{expected}")


def test_jobs_have_names_and_seeds_that_stay(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl", {"caption": "a"}, "", {"caption": "b", "id": "b.1", "seed": 5}
    )
    first, second = read_jobs(path)
    assert re.fullmatch(r"a-[0-9a-f]{8}", first.name)
    assert second.name == "b.1"
    assert read_jobs(path) == [first, second]
    assert second.params["seed"] == 5
    assert 0 <= first.params["seed"] < 2**32
    assert first.fingerprint != Job(first.name, {**first.params, "caption": "c"}).fingerprint
    for empty in (written(tmp_path / "none.jsonl", ""), tmp_path / "absent.jsonl"):
        with pytest.raises(RequestError, match=r"holds no prompt|cannot be read"):
            read_jobs(empty)


def test_a_line_more_at_the_top_changes_no_other(tmp_path: Path) -> None:
    lines = [
        {"caption": "Warm piano, rain!"},
        {"caption": "\u2028\u4e2d\u6587"},
        {"caption": "bells", "bpm": 90},
    ]
    before = read_jobs(written(tmp_path / "p.jsonl", *lines))
    more = read_jobs(written(tmp_path / "p.jsonl", {"caption": "new"}, *lines, lines[0]))
    assert more[1:4] == before
    assert before[0].name.startswith("warm-piano-rain-")
    twice = more[4]
    assert twice.name == f"{before[0].name}-2"
    assert twice.params["seed"] != before[0].params["seed"], "the same line again is another song"
    turned = {"bpm": 90, "caption": "bells"}
    assert read_jobs(written(tmp_path / "q.jsonl", turned))[0] == before[2]


def test_songs_that_lines_numbers_named_are_not_made_again(tmp_path: Path) -> None:
    """What an earlier version of this package left in a folder."""
    old = [
        Job("000001", {"caption": "a", "seed": jobs_module._drawn("000001")}),
        Job("000002", {"caption": "b", "seed": 5}),
        Job("000003", {"caption": "a", "seed": jobs_module._drawn("000003")}),
    ]
    journal = Journal(tmp_path / "out", "flac")
    with journal.locked():
        for job in old:
            record = {"seconds": 2.0, "caption": job.params["caption"]}
            journal.finish(job, Made(b"song", record, 0.1))
    lines = [{"caption": "new"}, {"caption": "a"}, {"caption": "b", "seed": 5}, {"caption": "a"}]
    jobs = read_jobs(written(tmp_path / "p.jsonl", *lines))
    pool = ScriptedPool({})
    assert finished(jobs, tmp_path / "out", pool).before == 3
    assert pool.taken == [jobs[0].name]


def test_warnings_of_songs_are_said_once() -> None:
    teller, said = batch_command._Teller(quiet=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_command, "say", said.append)
        progress = Progress(2, 0, warnings={"too long": "a"})
        teller(progress)
        progress.warnings["too loud"] = "b"
        teller(progress)
        teller.warn(progress)
    assert said == ["acestep: warning: a: too long", "acestep: warning: b: too loud"]


@settings(max_examples=40)
@given(
    kills=st.lists(st.integers(1, 12), max_size=4),
    deaths=st.lists(st.integers(0, 11), max_size=4, unique=True),
    order=st.integers(0, 2),
)
def test_whatever_is_killed_nothing_is_lost_or_made_twice(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int], deaths: list[int], order: int
) -> None:
    """Runs end at any job, workers die at others; every song that was put away stays as it is."""
    folder, jobs = tmp_path_factory.mktemp("out"), jobs_of(12)
    stamps: dict[str, int] = {}
    for kill in [*kills, None]:
        todo = remaining(jobs, Journal(folder, "flac"))
        script: dict[str, list[Any]] = {jobs[number].name: [None] for number in deaths}
        if kill is not None and kill <= len(todo):
            script[todo[kill - 1].name] = [KeyboardInterrupt()]
        pool = ScriptedPool(script, order)
        try:
            progress = finished(jobs, folder, pool)
        except KeyboardInterrupt:
            assert pool.closed
        songs = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.flac")}
        assert stamps.items() <= songs.items(), "a finished song was made again"
        stamps = songs
    assert progress.before + progress.done == 12
    assert sorted(stamps) == [f"{job.name}.flac" for job in jobs]
    assert all((folder / name).read_bytes() == name[:3].encode() for name in stamps)
    assert not [
        path
        for path in folder.iterdir()
        if path.suffix not in (".flac", ".json", ".jsonl", ".lock")
    ]
    names = [e["id"] for e in Journal(folder, "flac").events() if e["state"] == "done"]
    assert sorted(names) == [job.name for job in jobs]


def test_failures_are_tried_once_more_and_listed(tmp_path: Path) -> None:
    pool = ScriptedPool(
        {"000": ["no luck"], "002": ["wrong", "wrong still"], "003": [None] * DEATHS}
    )
    progress = finished(jobs_of(6), tmp_path, pool)
    assert progress.failed == {"002": "wrong still", "003": "its workers died, again and again"}
    assert pool.taken.count("000") == pool.taken.count("002") == 2
    assert pool.taken.index("005") < [i for i, n in enumerate(pool.taken) if n == "002"][1]
    assert pool.taken.count("003") == DEATHS
    assert pool.closed
    assert progress.line().startswith("4 of 6 done, 2 failed, ")
    failed = [e["id"] for e in Journal(tmp_path, "flac").events() if e["state"] == "failed"]
    assert sorted(failed) == ["000", "002", "002", "003"]
    again = finished(jobs_of(6), tmp_path, ScriptedPool({}))
    assert (again.before, again.done, again.failed) == (4, 2, {})


def test_half_a_song_and_an_edited_line_are_made_again(tmp_path: Path) -> None:
    jobs = jobs_of(4)
    finished(jobs, tmp_path, ScriptedPool({}))
    (tmp_path / "000.json").unlink()  # killed between the two files
    (tmp_path / "001.json").write_text('{"job": "', encoding="utf-8")
    (tmp_path / "002.flac").unlink()
    with (tmp_path / JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write('\n{"id": "00')
    edited = [*jobs[:3], Job("003", {"caption": "y", "seed": 3})]
    journal = Journal(tmp_path, "flac")
    assert remaining(jobs, journal) == jobs[:3]
    assert remaining(edited, journal) == edited
    assert finished(edited, tmp_path, ScriptedPool({})).done == 4
    assert len(journal.events()) == 8, "the torn line is passed over, those after it are not"

    def unwanted() -> Any:
        raise AssertionError("there is nothing to do")

    assert run(edited, journal, unwanted, lambda progress: None).before == 4


def test_a_job_at_which_the_run_died_is_journalled_and_comes_last(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_batch import *\n"
        "class Deadly(ScriptedPool):\n"
        "    def wait(self):\n"
        "        if self.queue[0].name == '001': os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().wait()\n"
        "finished(jobs_of(6), Path(sys.argv[1]), Deadly({}))\n"
    )
    arguments = [str(tmp_path), str(Path(__file__).parent)]
    died = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert died.returncode < 0
    pool = ScriptedPool({})
    assert finished(jobs_of(6), tmp_path, pool).done == 5
    events = Journal(tmp_path, "flac").events()
    failed = [event["id"] for event in events if event["state"] == "failed"]
    assert "001" in failed
    assert "000" not in failed
    assert {event["reason"] for event in events if event["state"] == "failed"} == {ENDED}
    assert pool.taken[0] not in failed, "what was cut off comes after the rest"


def test_a_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "001.flac").write_text("mine")
    for done in (2, 0):
        progress = finished(jobs_of(3), tmp_path, ScriptedPool({}))
        assert (progress.done, list(progress.failed)) == (done, ["001"])
        assert progress.failed["001"].startswith("001.flac exists, and is not of this batch")
        assert (tmp_path / "001.flac").read_text() == "mine"
    (tmp_path / "001.flac").unlink()
    assert finished(jobs_of(3), tmp_path, ScriptedPool({})).done == 1


def test_kinds_of_file_have_their_own_records(tmp_path: Path) -> None:
    finished(jobs_of(2), tmp_path, ScriptedPool({}))
    other = Journal(tmp_path, "wav")
    with other.locked():
        assert run(jobs_of(2), other, lambda: ScriptedPool({}), lambda progress: None).done == 2
    assert not remaining(jobs_of(2), Journal(tmp_path, "flac"))
    assert not remaining(jobs_of(2), Journal(tmp_path, "wav"))


def test_a_folder_is_for_one_run(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, "flac").locked(),
        pytest.raises(RequestError, match="another run is at work there"),
        Journal(tmp_path, "flac").locked(),
    ):
        pytest.fail("two runs at once")
    (tmp_path / "file").touch()
    with (
        pytest.raises(RequestError, match="cannot be written"),
        Journal(tmp_path / "file" / "under", "flac").locked(),
    ):
        pytest.fail("a file is no folder")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = written(
        tmp_path / "p.jsonl",
        {"caption": "piano", "id": "a", **SHORT},
        {"caption": "bells", "id": "b", "seed": 4, **SHORT},
        {"caption": "long", "id": "c", "duration": 9999},
    )
    out = tmp_path / "songs"
    options = ["batch", str(prompts), "-o", str(out), "--devices", "cpu", "--config_path", "demo"]
    options += ["--format", "wav", "--bit-depth", "32"]
    assert main(options) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    lines = printed.err.splitlines()
    assert any(line.startswith("acestep: 2 of 3 done, 1 failed, ") for line in lines)
    warned = [line for line in lines if "warning: a: this checkpoint was distilled" in line]
    assert len(warned) == 1, "the same of two songs"
    assert lines[-1].startswith("acestep: failed: c: duration 9999 is out of range")
    record = json.loads((out / "b.json").read_text(encoding="utf-8"))
    assert (record["seed"], record["caption"], record["seconds"]) == (4, "bells", 0.5)
    assert soundfile.info(out / "a.wav").subtype == "FLOAT"
    before = (out / "a.wav").read_bytes()
    assert main(options) == 1
    assert (out / "a.wav").read_bytes() == before
    assert main([*options[:4], "--devices", "all", "cpu"]) == 2
    assert "takes all, or names, not both" in capsys.readouterr().err


def test_what_only_a_language_model_would_heed_is_said() -> None:
    (line,) = unplanned(Job("a", {"caption": "x", "thinking": True, "lm_top_k": 5}))
    assert line.endswith("no language model (--think does): thinking, lm_top_k")
    assert unplanned(Job("a", {"caption": "x", "thinking": False})) == []


def test_a_worker_says_what_is_wrong_with_a_job() -> None:
    worker = Worker("cpu", Setting("demo"), threads=1)
    made = worker.make(Job("a", {"caption": "x", "seed": 1, **SHORT}))
    assert isinstance(made, Made)
    assert made.audio[:4] == b"fLaC"
    assert worker.make(Job("b", {"caption": "x", "seed": 1, "bpm": 1})) == (
        "bpm 1 is out of range; expected 30 to 300"
    )
    pool = InlinePool(worker)
    pool.submit(Job("c", {"caption": "x", "seed": 1, **SHORT}))
    job, again = pool.wait()
    assert job.name == "c"
    assert isinstance(again, Made)
    assert again.audio == made.audio, "a job is the same song wherever it is made"
    pool.close()


def test_songs_planned_ahead_are_those_planned_in_turn() -> None:
    """Three at a time; an error is that of its song, and nothing runs on after closing."""
    worker = Worker("cpu", Setting("demo", planner="demo"), threads=1)
    with pytest.raises(RequestError, match="cpu does not do both at a time; leave --ahead out"):
        Worker("cpu", Setting("demo", planner="demo", ahead=True), threads=1)
    codes_alone = dict.fromkeys(("use_cot_metas", "use_cot_caption", "use_cot_language"), False)
    asked = {"seed": 1, **SHORT, **codes_alone}
    jobs = [Job(name, {"caption": f"piano {name}", **asked}) for name in "ab"]
    alone = [worker.make(job) for job in jobs]
    pool = AheadPool(worker)
    for job in (jobs[0], Job("wrong", {"caption": "x", **asked, "bpm": 1}), jobs[1]):
        pool.submit(job)
    made = [pool.wait() for _ in range(3)]
    assert made[1][1] == "bpm 1 is out of range; expected 30 to 300"
    for (job, one), wanted, other in zip(made[::2], jobs, alone, strict=True):
        assert job is wanted
        assert isinstance(one, Made)
        assert isinstance(other, Made)
        assert one.audio == other.audio
    unplanned_song = worker.make(Job("a", {**jobs[0].params, "thinking": False}))
    assert isinstance(unplanned_song, Made)
    assert unplanned_song.audio != made[0][1].audio, "the codes are heard"
    pool.submit(jobs[1])
    pool.close()
    assert pool._under_way[0][1].done()
