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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `acestep`, running as a program of its own."""
    with running(tmp_path_factory.mktemp("cache"), "--device", "cpu") as url:
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
    visitor = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
    made, problems, hosts = visitor.new_page(), [], set()
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    made.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    made.goto(url)
    made.wait_for_selector("#acestep-make:not([disabled])")
    # The page has arrived when the server has answered its first question.
    made.wait_for_selector("#acestep-service-status, #acestep-songs .hint", state="attached")
    made.wait_for_timeout(500)
    yield made
    visitor.close()
    assert hosts <= {url.split("/")[2], ""}, hosts
    assert not problems


def fill(page: Any, prompt: str, seconds: float = 2, lyrics: str = "", seed: int = -1) -> None:
    page.fill("#acestep-prompt textarea", prompt)
    page.fill("#acestep-lyrics textarea", lyrics)
    for name, value in (("duration", seconds), ("seed", seed)):
        box = page.locator(f"#acestep-{name} input[type=number]")
        box.fill(str(value))
        box.press("Tab")


def make(page: Any, *given: Any, **named: Any) -> Any:
    """Make a song; its card."""
    fill(page, *given, **named)
    before = page.locator("article.song").count()
    page.click("#acestep-make")
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


def test_a_song_is_made_heard_and_found_again(page: Any) -> None:
    song = make(page, "warm piano <b>bold</b>", 3, "[verse]\nhello there\nworld of songs", 7)
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
    assert song.locator("ol.lyrics li").count() == 3
    song.locator("ol.lyrics li").nth(1).locator("button").click()
    page.wait_for_function("() => document.querySelector('ol.lyrics li.now') !== null")
    page.reload()
    page.wait_for_selector("article.song")
    assert page.locator("article.song h3").inner_text() == "warm piano <b>bold</b>"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    page.wait_for_selector("article.song", state="detached")


def test_a_song_is_cancelled_and_the_device_is_free(page: Any) -> None:
    fill(page, "endless", 120)
    page.locator("#acestep-advanced button").first.click()
    steps = page.locator("#acestep-steps input[type=number]")
    steps.fill("100")
    steps.press("Tab")
    page.click("#acestep-make")
    page.wait_for_function(
        "() => /step|diffusion/.test(document.querySelector('#acestep-progress').innerText)",
        timeout=90_000,
    )
    assert page.locator("progress").count() == 1
    page.click("#acestep-cancel")
    notice(page, "Cancelled")
    assert page.locator("article.song").count() == 0
    steps.fill("2")
    steps.press("Tab")
    make(page, "after that", 1)


def test_errors_are_one_sentence_and_the_page_goes_on(page: Any, tmp_path: Path) -> None:
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
    page.locator("#acestep-source > button").click()
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF\xff\xff\xff\x7fWAVEfmt nonsense" * 40)
    page.set_input_files("#acestep-source-file input[type=file]", broken)
    notice(page, "not readable as audio")
    page.click("#acestep-inspire")
    notice(page, "in a few words")


def test_an_upload_is_repainted_where_the_range_was_drawn(page: Any, tmp_path: Path) -> None:
    source = tmp_path / "chord.wav"
    time_axis = torch.arange(2 * 48000) / 48000
    soundfile.write(source, torch.sin(1382 * time_axis).numpy() * 0.4, 48000)
    page.locator("#acestep-source > button").click()
    page.set_input_files("#acestep-source-file input[type=file]", source)
    wave = page.wait_for_selector(".wave.range")
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
    song = make(page, "strings")
    song.locator("summary").last.click()
    assert "repaint" in song.locator("dl").inner_text()
    song.get_by_role("button", name="Use as source").click()
    notice(page, "chosen as source")


def test_another_language_labels_everything_anew(page: Any) -> None:
    page.locator("#acestep-page-language input").click()
    page.get_by_role("option", name="日本語").click()
    page.wait_for_function(
        "() => document.querySelector('#acestep-make').innerText === '音楽を作る'"
    )
    assert page.evaluate("document.documentElement.lang") == "ja"
    assert "スタジオ" in page.inner_text("#acestep-title")
    assert "歌詞" in page.inner_text("#acestep-lyrics")
    page.reload()
    page.wait_for_function(
        "() => document.querySelector('#acestep-make')?.innerText === '音楽を作る'"
    )


def test_a_phone_shows_all_of_it(browser: Any, server: str) -> None:
    phone = {"is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    for page in opened(browser, server, **phone):
        page.set_viewport_size({"width": 360, "height": 740})
        make(page, "small screen", 1)
        wide = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length && "
            "!e.closest('[hidden]') && e.getBoundingClientRect().right > innerWidth + 1 && "
            "getComputedStyle(e).position !== 'absolute').map(e => e.outerHTML.slice(0, 80))"
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), wide


def test_keyboard_and_screen_reader(page: Any) -> None:
    """Everything that can be used has a name, and the form can be used without a mouse."""
    for fold in ("service", "music", "source", "advanced"):
        page.locator(f"#acestep-{fold} > button").click()
    page.wait_for_timeout(500)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, a, audio')]
          .filter(e => e.getClientRects().length)
          .filter(e => !(e.getAttribute('aria-label') || e.innerText || e.title
            || e.labels?.length || e.closest('label')?.innerText
            || e.getAttribute('aria-labelledby')))
          .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == []
    page.focus("#acestep-prompt textarea")
    page.keyboard.type("typed by hand")
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "acestep-make":
            break
    assert page.evaluate("document.activeElement.id") == "acestep-make"
    page.evaluate("document.querySelector('#acestep-duration input[type=number]').value")
    contrast = page.evaluate(CONTRAST)
    assert min(ratio for _, ratio in contrast) >= 4.5, sorted(contrast, key=lambda c: c[1])[:5]


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
