// The page's own behaviour: waveforms that seek, lyrics that follow, ranges that are drawn.
(() => {
  'use strict';
  const card = (node) => node.closest('article.song');
  const player = (node) => card(node)?.querySelector('audio');
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // A list that is drawn anew must not silence the song that is playing.
  let playing = null;

  function mark(audio) {
    const song = card(audio);
    if (!song) return;
    const wave = song.querySelector('.wave');
    const seconds = Number(wave.dataset.seconds) || 1;
    let played = wave.querySelector('.played');
    if (!played) {
      played = document.createElement('div');
      played.className = 'played';
      played.append(wave.querySelector('svg').cloneNode(true));
      wave.append(played);
    }
    played.style.width = `${(100 * audio.currentTime) / seconds}%`;
    played.firstChild.style.width = `${wave.clientWidth}px`;
    wave.setAttribute('aria-valuenow', audio.currentTime.toFixed(2));
    // Lines may overlap; the one that began last is being sung.
    let sung = null;
    for (const line of song.querySelectorAll('ol.lyrics li')) {
      const start = Number(line.dataset.start);
      const end = Math.max(Number(line.dataset.end), start + 0.05);
      if (audio.currentTime >= start && audio.currentTime < end) sung = line;
    }
    for (const line of song.querySelectorAll('ol.lyrics li')) {
      const now = line === sung;
      if (now && !line.classList.contains('now')) {
        const list = line.parentElement;
        list.scrollTop = line.offsetTop - list.clientHeight / 2;
      }
      line.classList.toggle('now', now);
      if (now) line.setAttribute('aria-current', 'true');
      else line.removeAttribute('aria-current');
    }
  }

  function seek(node, seconds) {
    const audio = player(node);
    if (!audio) return;
    audio.currentTime = clamp(seconds, 0, audio.duration || seconds);
    mark(audio);
  }

  for (const name of ['timeupdate', 'seeked', 'play', 'pause', 'ended']) {
    document.addEventListener(name, (event) => {
      const audio = event.target;
      if (!(audio instanceof HTMLAudioElement) || !card(audio)) return;
      mark(audio);
      if (name === 'play') {
        for (const other of document.querySelectorAll('article.song audio')) {
          if (other !== audio) other.pause();
        }
      }
      if (!audio.isConnected) return;
      playing = audio.paused ? null : { id: card(audio).dataset.song, at: audio.currentTime };
    }, true);
  }

  new MutationObserver(() => {
    if (!playing) return;
    const audio = document.querySelector(`article.song[data-song="${playing.id}"] audio`);
    if (!audio || !audio.paused || audio.currentTime > 0) return;
    audio.currentTime = playing.at;
    audio.play().catch(() => { playing = null; });
  }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener('click', (event) => {
    const line = event.target.closest('[data-seek]');
    if (line) seek(line, Number(line.dataset.seek));
    const wave = event.target.closest('article.song .wave');
    if (wave) {
      const box = wave.getBoundingClientRect();
      seek(wave, ((event.clientX - box.left) / box.width) * Number(wave.dataset.seconds));
    }
  });

  document.addEventListener('keydown', (event) => {
    const wave = event.target.closest?.('article.song .wave');
    const audio = wave && player(wave);
    if (!audio) return;
    const step = { ArrowLeft: -2, ArrowRight: 2, ArrowDown: -2, ArrowUp: 2 }[event.key];
    if (step) seek(wave, audio.currentTime + step);
    else if (event.key === 'Home') seek(wave, 0);
    else if (event.key === 'End') seek(wave, Number(wave.dataset.seconds));
    else if (event.key === ' ' || event.key === 'Enter') audio[audio.paused ? 'play' : 'pause']();
    else return;
    event.preventDefault();
  });

  // A range on the waveform of the source, drawn with mouse, pen or finger.
  let range = null;
  const position = (wave, event) => {
    const box = wave.getBoundingClientRect();
    return clamp((event.clientX - box.left) / box.width, 0, 1) * Number(wave.dataset.seconds);
  };
  const show = (wave, start, end) => {
    const picked = wave.querySelector('.picked');
    const seconds = Number(wave.dataset.seconds);
    picked.hidden = !(end > start);
    picked.style.left = `${(100 * start) / seconds}%`;
    picked.style.width = `${(100 * (end - start)) / seconds}%`;
  };
  document.addEventListener('pointerdown', (event) => {
    const wave = event.target.closest?.('.wave.range');
    if (!wave) return;
    range = { wave, from: position(wave, event) };
    wave.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  document.addEventListener('pointermove', (event) => {
    if (!range) return;
    const at = position(range.wave, event);
    show(range.wave, Math.min(range.from, at), Math.max(range.from, at));
  });
  document.addEventListener('pointerup', (event) => {
    if (!range) return;
    const { wave, from } = range;
    range = null;
    const at = position(wave, event);
    const [start, end] = [Math.min(from, at), Math.max(from, at)];
    if (end - start < 0.05) return;
    wave.dispatchEvent(new CustomEvent('acestep-range', { bubbles: true, detail: { start, end } }));
  });
  // Numbers that are typed move the range too.
  document.addEventListener('input', (event) => {
    if (!event.target.closest?.('#acestep-repaint-start, #acestep-repaint-end')) return;
    const wave = document.querySelector('.wave.range');
    if (!wave) return;
    const value = (id) => Number(document.querySelector(`#${id} input`)?.value) || 0;
    const end = value('acestep-repaint-end') || Number(wave.dataset.seconds);
    show(wave, value('acestep-repaint-start'), end);
  });

  const language = document.cookie.match(/acestep_language=(\w+)/)?.[1];
  if (language) document.documentElement.lang = language;
})();
