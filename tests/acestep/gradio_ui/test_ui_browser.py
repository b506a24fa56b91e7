"""The page in a real browser: `pytest -m browser`, which needs Debian's chromium.

The program is started as a person starts it, on the CPU with the built-in checkpoint.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from acestep.gradio_ui import safety
from acestep.gradio_ui.store import Store
from acestep.gradio_ui.texts import LANGUAGES, texts

pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; its absence is a failure, for these tests are asked for by name."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no Chromium here; install Debian's: apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        made = driver.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield made
        made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program keeps what it makes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of `acestep`, running as a program of its own."""
    with running(folder, "--device", "cpu") as url:
        yield url


class running:  # noqa: N801 (used as a context manager function)
    """`acestep` in a process of its own, ready to be asked."""

    def __init__(self, folder: Path, *options: str) -> None:
        import os
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        cache = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        cache["ACESTEP_CACHE"] = str(folder)
        source = Path(os.environ["ACESTEP_CACHE"])
        for built in source.glob("*demo*"):
            os.symlink(built, folder / built.name)
        command = [sys.executable, "-m", "acestep", "--port", str(port), *options]
        self.process = subprocess.Popen(
            command, env=cache, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def __enter__(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if b"the page is at" in line:
                return self.url
        raise AssertionError(f"acestep ended with {self.process.wait()}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        _, errors = self.process.communicate(timeout=30)
        assert b"Traceback" not in errors, errors.decode()


@pytest.fixture
def page(browser: Any, server: str) -> Iterator[Any]:
    """A fresh visitor's page; it asks nobody but the server, and logs no error."""
    yield from opened(browser, server)


def opened(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    size = {"width": 1440, "height": 900}
    visitor = browser.new_context(**{"viewport": size, **context})
    # Long enough for a machine that has other things to do.
    visitor.set_default_timeout(90_000)
    made, problems, hosts = visitor.new_page(), [], set()
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    made.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    made.goto(url)
    arrived(made)
    yield made
    visitor.close()
    assert hosts <= {url.split("/")[2], ""}, hosts
    # A page that is left while an answer is under way says so of itself.
    left = ("AbortError", "Connection errored out")
    assert not [problem for problem in problems if not any(word in problem for word in left)]


def arrived(page: Any) -> None:
    """Wait until the server has answered the page's first questions."""
    page.wait_for_selector("#acestep-create, #acestep-make", state="attached")
    page.wait_for_function("() => window.acestepRead")
    page.wait_for_timeout(1000)


def mode(page: Any, name: str) -> None:
    """Choose the simple or the custom mode."""
    page.locator(f"#acestep-mode input[value={name}]").check(force=True)
    box = "#acestep-query" if name == "simple" else "#acestep-prompt"
    page.wait_for_selector(f"{box} textarea", state="visible")


def number(page: Any, name: str, value: float) -> None:
    box = page.locator(f"#acestep-{name} input[type=number]").first
    box.fill(str(value))
    box.press("Tab")


def fill(page: Any, prompt: str, seconds: float = 2, lyrics: str = "", seed: int = -1) -> None:
    mode(page, "custom")
    page.fill("#acestep-prompt textarea", prompt)
    page.fill("#acestep-lyrics textarea", lyrics)
    if page.locator("#acestep-duration").is_visible():
        number(page, "duration", seconds)
    number(page, "seed", seed)


def make(page: Any, *given: Any, **named: Any) -> Any:
    """Make a song; its card."""
    fill(page, *given, **named)
    return pressed(page, "#acestep-make")


def pressed(page: Any, button: str) -> Any:
    """Press what makes songs; the newest card."""
    before = page.locator("article.song").count()
    page.click(button)
    page.wait_for_function(
        "n => document.querySelectorAll('article.song').length > n", arg=before, timeout=90_000
    )
    return page.locator("article.song").first


def notice(page: Any, pattern: str) -> None:
    page.wait_for_function(
        "p => new RegExp(p).test(document.querySelector('#acestep-notice').innerText)",
        arg=pattern,
        timeout=90_000,
    )


def bottom(page: Any, selector: str) -> float:
    """Where the lower edge of something is, in pixels from the window's top."""
    box = page.locator(selector).bounding_box()
    return float(box["y"] + box["height"])


def serious(page: Any, name: str) -> list[str]:
    """What axe-core finds that is serious or worse."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{name}: {one['id']} {one['nodes'][0]['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_one_idea_is_heard_found_renamed_and_deleted(page: Any) -> None:
    assert bottom(page, "#acestep-create") < 900
    for name in ("query", "duration", "batch", "seed"):
        assert page.locator(f"#acestep-{name}").is_visible()
    page.fill("#acestep-query textarea", "warm piano <b>bold</b>")
    number(page, "duration", 3)
    number(page, "seed", 7)
    song = pressed(page, "#acestep-create")
    assert song.locator("h3").inner_text() == "warm piano <b>bold</b>"
    assert "seed 7" in song.locator(".meta").inner_text()
    audio = song.locator("audio")
    page.wait_for_function("() => document.querySelector('article.song audio').readyState >= 1")
    assert audio.evaluate("a => a.duration") == pytest.approx(3.0, abs=0.05)
    loud = audio.evaluate(
        """async a => {
          const bytes = await (await fetch(a.src)).arrayBuffer();
          const sound = await new OfflineAudioContext(2, 48000, 48000).decodeAudioData(bytes);
          return [sound.duration, Math.max(...sound.getChannelData(0).slice(0, 48000))];
        }"""
    )
    assert loud[0] == pytest.approx(3.0, abs=0.05)
    assert loud[1] > 0.01
    song.locator("details.menu summary").click()
    with page.expect_download() as download:
        song.get_by_role("link", name="MP3").click()
    assert soundfile.info(download.value.path()).format == "MP3"
    song.get_by_role("button", name="Rename").click()
    page.keyboard.type("a better name")
    page.keyboard.press("Enter")
    notice(page, "Renamed")
    song.locator(".star").click()
    page.wait_for_selector(".star[aria-pressed=true]")
    page.fill("#acestep-search input", "nothing like it")
    page.wait_for_selector("#no-match", state="visible")
    page.fill("#acestep-search input", "BETTER piano")
    page.wait_for_selector("article.song", state="visible")
    page.reload()
    page.wait_for_selector("article.song")
    assert page.locator("article.song h3").inner_text() == "a better name"
    # One button, no questions: the same seed again.
    page.get_by_role("button", name="Again with this seed").click()
    page.wait_for_function("() => document.querySelectorAll('article.song').length === 2")
    assert page.locator("article.song .meta", has_text="seed 7").count() == 2
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").first.click()
    page.wait_for_function("() => document.querySelectorAll('article.song').length === 1")


def test_lyrics_follow_a_song_that_is_sung(page: Any, folder: Path) -> None:
    song = make(page, "piano", 3, "[verse]\nhello there\nworld of songs", 7)
    assert song.locator("ol.lyrics").count() == 0
    assert "Lyrics (not sung)" in song.inner_text()
    assert "Lyric score" not in song.inner_text()
    store = Store(folder / "page" / "songs")
    cookie = next(c["value"] for c in page.context.cookies() if c["name"] == safety.COOKIE)
    owner = safety.visitor({safety.COOKIE: cookie}, "")
    lines = [(0.0, 0.5, "[verse]"), (0.5, 1.5, "hello there"), (1.5, 3.0, "world of songs")]
    score = dict.fromkeys(("lyrics_score", "coverage", "monotonicity", "confidence"), 0.5)
    song_id = song.get_attribute("data-song")
    assert store.change(owner, song_id, lines=lines, score=score, wordless=False, warnings=[])
    page.reload()
    page.wait_for_selector("ol.lyrics")
    assert "Lyric score 0.5000" in song.inner_text()
    song.locator("ol.lyrics li").nth(1).locator("button").click()
    page.wait_for_function("() => document.querySelector('ol.lyrics li.now') !== null")


def test_one_of_two_is_cancelled(page: Any) -> None:
    fill(page, "endless", 120)
    page.locator("#acestep-advanced > button").click()
    number(page, "steps", 100)
    page.click("#acestep-make")
    page.wait_for_function(
        "() => /[0-9]+ % · diffusion, step/.test(document.querySelector('#acestep-progress').innerText)",
        timeout=90_000,
    )
    # The title follows the line a moment later.
    page.wait_for_function("() => /^[0-9]+ %/.test(document.title)", timeout=30_000)
    page.fill("#acestep-prompt textarea", "after that")
    number(page, "duration", 1)
    number(page, "steps", 2)
    page.click("#acestep-make")
    page.wait_for_function("() => document.querySelectorAll('#acestep-progress .job').length === 2")
    assert page.locator("#acestep-cancel").is_visible()
    page.get_by_role("button", name="Cancel: Song: endless").click()
    page.wait_for_selector("article.song", timeout=90_000)
    assert page.locator("article.song h3").all_inner_texts() == ["after that"]
    page.wait_for_selector("#acestep-cancel", state="hidden")


def test_errors_are_one_sentence_and_the_page_goes_on(page: Any, tmp_path: Path) -> None:
    page.click("#acestep-create")
    notice(page, "in a few words")
    mode(page, "custom")
    page.click("#acestep-make")
    notice(page, "the prompt is empty")
    assert page.locator("#acestep-notice [role=alert]").count() == 1
    page.locator("#acestep-service > button").click()
    page.locator("#acestep-device input").click()
    page.get_by_role("option", name=re.compile("mps .not on this machine")).click()
    notice(page, "'mps' is not available here")
    page.locator("#acestep-device input").click()
    page.get_by_role("option", name="auto").click()
    page.wait_for_function("() => !document.querySelector('#acestep-notice .error')")
    page.locator("#acestep-backend input").click()
    page.get_by_role("option", name="vllm").click()
    notice(page, "'vllm' cannot be used on cpu")
    task(page, "Cover of the source")
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\xff\xff\xff\x7fWAVEfmt nonsense" * 40)
    choose(page, broken)
    notice(page, "not readable as audio")


def task(page: Any, name: str) -> None:
    """Choose what to make."""
    page.locator("#acestep-task input").click()
    page.get_by_role("option", name=name).click()


def choose(page: Any, file: Path) -> None:
    """Choose a source."""
    with page.expect_file_chooser() as chooser:
        page.click("#acestep-source-file")
    chooser.value.set_files(file)


def test_an_upload_is_repainted_where_the_range_was_drawn(page: Any, tmp_path: Path) -> None:
    source = tmp_path / "chord.wav"
    time_axis = torch.arange(2 * 48000) / 48000
    soundfile.write(source, torch.sin(1382 * time_axis).numpy() * 0.4, 48000)
    mode(page, "custom")
    task(page, "Repaint a part")
    choose(page, source)
    wave = page.wait_for_selector(".wave.range")
    assert not page.locator("#acestep-duration").is_visible()
    wave.scroll_into_view_if_needed()
    box = wave.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "() => Number(document.querySelector('#acestep-repaint-end input').value) > 1"
    )
    assert float(page.input_value("#acestep-repaint-start input")) == pytest.approx(0.5, abs=0.1)
    assert float(page.input_value("#acestep-repaint-end input")) == pytest.approx(1.5, abs=0.1)
    number(page, "repaint-end", -1)
    width = page.evaluate("parseFloat(document.querySelector('.picked').style.width)")
    assert width == pytest.approx(75, abs=5)
    song = make(page, "strings")
    song.locator("summary", has_text="Details").click()
    assert "repaint" in song.locator("dl").last.inner_text()
    song.get_by_role("button", name="Use as source").click()
    notice(page, "chosen as source")
    page.wait_for_function(
        "() => document.querySelector('#acestep-repaint-end input').value === '0'"
    )
    assert song.locator("details[data-fold=details]").get_attribute("open") is not None
    page.click("#acestep-clear-source")
    page.wait_for_selector(".wave.range", state="detached")
    assert "No source yet" in page.inner_text("#acestep-source-wave")


def test_what_was_typed_outlasts_a_reload_and_the_planner(page: Any) -> None:
    fill(page, "my very own words", 4, "my lyrics", 11)
    page.click("#acestep-inspire")
    notice(page, "Your own words are kept")
    assert page.input_value("#acestep-prompt textarea") != "my very own words"
    page.reload()
    arrived(page)
    page.wait_for_selector("#acestep-undo", state="visible")
    assert page.input_value("#acestep-seed input") == "11"
    page.click("#acestep-undo")
    notice(page, "Your words are back")
    assert page.input_value("#acestep-prompt textarea") == "my very own words"
    assert page.input_value("#acestep-lyrics textarea") == "my lyrics"


@pytest.mark.parametrize("code", ["ja", "zh"])
def test_another_language_labels_everything_anew(page: Any, code: str) -> None:
    words, english = texts(code), texts("en")
    make(page, "piano", 1)
    page.locator("#acestep-page-language input").click()
    page.get_by_role("option", name=LANGUAGES[code]).click()
    page.wait_for_function(
        "name => document.querySelector('#acestep-make').innerText === name",
        arg=words("make.label"),
    )
    assert page.evaluate("document.documentElement.lang") == code
    for fold in ("music", "advanced", "service"):
        page.locator(f"#acestep-{fold} > button").click()
    page.wait_for_timeout(500)
    shown = page.evaluate(
        """() => [document.title, document.body.innerText,
          ...[...document.querySelectorAll('[aria-label], [placeholder], [title]')]
            .filter(e => e.getClientRects().length)
            .flatMap(e => [e.getAttribute('aria-label'), e.getAttribute('placeholder'), e.title])]
          .filter(Boolean).join('\\n')"""
    )
    left = {
        key for key, text in english.table.items()
        if len(text) > 8 and "{" not in text and text != words.table[key] and text in shown
    }  # fmt: skip
    assert not left
    # Nor does a component say anything English of its own.
    plain = [
        line for line in shown.split("\n") if re.search(r"[A-Za-z]{3,} [a-z]{3,} [a-z]{2,}", line)
    ]
    known = ("dit float32", "acestep download", "CUDA or MPS")
    assert [line for line in plain if not any(word in line for word in known)] == []
    assert not serious(page, code)
    page.reload()
    page.wait_for_function(
        "name => document.querySelector('#acestep-make')?.innerText === name",
        arg=words("make.label"),
    )


PHONE = {"is_mobile": True, "has_touch": True, "viewport": {"width": 390, "height": 844}}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(browser: Any, server: str, scheme: str) -> None:
    for page in opened(browser, server, color_scheme=scheme, **PHONE):
        assert bottom(page, "#acestep-create") < 844
        box = page.locator("#acestep-query textarea").bounding_box()
        assert box["width"] >= 0.92 * 390
        mode(page, "custom")
        assert bottom(page, "#acestep-make") < 1.5 * 844
        task(page, "Repaint a part")
        page.wait_for_selector("#acestep-repaint-start")
        # In sight, however long the form is.
        assert bottom(page, "#acestep-make") < 844
        task(page, "New song")
        page.wait_for_selector("#acestep-duration", state="visible")
        make(page, "small screen", 1)
        for fold in ("music", "advanced", "service"):
            page.locator(f"#acestep-{fold} > button").click()
        page.wait_for_timeout(400)
        assert not serious(page, f"phone {scheme}")
        page.set_viewport_size({"width": 360, "height": 740})
        wide = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length && "
            "!e.closest('[hidden]') && e.getBoundingClientRect().right > innerWidth + 1 && "
            "getComputedStyle(e).position !== 'absolute').map(e => e.outerHTML.slice(0, 80))"
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), wide


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, server: str, scheme: str) -> None:
    for page in opened(browser, server, color_scheme=scheme):
        found = serious(page, "simple")
        mode(page, "custom")
        assert bottom(page, "#acestep-make") < 900
        found += serious(page, "custom")
        song = make(page, "piano", 1, "la la la")
        song.get_by_role("button", name="Use as source").click()
        page.wait_for_selector(".wave.range")
        for summary in song.locator("summary").all():
            summary.click()
        for fold in ("music", "advanced", "service"):
            page.locator(f"#acestep-{fold} > button").click()
        page.wait_for_timeout(500)
        found += serious(page, "all open")
        page.fill("#acestep-prompt textarea", "")
        page.click("#acestep-make")
        notice(page, "empty")
        found += serious(page, "error")
        assert not found
        contrast = page.evaluate(CONTRAST)
        assert min(ratio for _, ratio in contrast) >= 4.5, sorted(contrast, key=lambda c: c[1])[:5]


def reach(page: Any, found: str, key: str = "Tab") -> None:
    """Press a key until what has the focus matches a selector."""
    for _ in range(60):
        if page.evaluate("s => document.activeElement.matches(s)", found):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{found} is not reached with {key}")


def test_a_song_by_keyboard_alone(page: Any) -> None:
    page.keyboard.press("Tab")
    reach(page, ".skip")
    page.keyboard.press("Enter")
    reach(page, "#acestep-mode input")
    reach(page, "#acestep-query textarea")
    page.keyboard.type("typed by hand")
    reach(page, "#acestep-duration input")
    page.keyboard.press("Control+a")
    page.keyboard.type("1")
    reach(page, "#acestep-create")
    page.keyboard.press("Enter")
    page.wait_for_selector("article.song", timeout=90_000)
    reach(page, ".star")
    page.keyboard.press("Enter")
    page.wait_for_selector(".star[aria-pressed=true]")
    reach(page, "article.song .wave")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('article.song audio').currentTime > 0")
    reach(page, "[data-action=rename]")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+a")
    page.keyboard.type("by hand")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('article.song h3').innerText === 'by hand'"
    )
    reach(page, "#acestep-mode input", "Shift+Tab")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#acestep-prompt textarea", state="visible")
    assert page.input_value("#acestep-prompt textarea") == "typed by hand"
    for fold in ("music", "advanced", "service"):
        page.locator(f"#acestep-{fold} > button").click()
    page.wait_for_timeout(500)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, a, audio')]
          .filter(e => e.checkVisibility())
          .filter(e => !(e.getAttribute('aria-label') || e.innerText || e.title
            || e.labels?.length || e.closest('label')?.innerText
            || e.getAttribute('aria-labelledby')))
          .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == []


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.9) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('label span, .hint, h1, h2, p, li, button')) {
    if (!e.getClientRects().length || e.disabled || !e.innerText.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found.push([e.innerText.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""
