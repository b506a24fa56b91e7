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

  // Lists are drawn anew in place: what a person opened stays open, what they search stays found.
  const opened = new Set();
  const fold = (details) => `${card(details)?.dataset.song} ${details.dataset.fold}`;
  document.addEventListener('toggle', (event) => {
    const details = event.target;
    if (!details.matches?.('article.song details[data-fold]')) return;
    if (details.open) opened.add(fold(details));
    else opened.delete(fold(details));
    if (!details.open || details.dataset.fold !== 'menu') return;
    const list = details.querySelector('ul');
    list.classList.remove('leftwards');
    list.classList.toggle('leftwards', list.getBoundingClientRect().right > innerWidth - 8);
    for (const other of document.querySelectorAll('details.menu[open]')) {
      if (other !== details) other.open = false;
    }
  }, true);
  document.addEventListener('click', (event) => {
    for (const menu of document.querySelectorAll('details.menu[open]')) {
      if (!menu.contains(event.target) || event.target.closest('a')) menu.open = false;
    }
  });
  document.addEventListener('keydown', (event) => {
    const menu = event.key === 'Escape' && event.target.closest?.('details.menu[open]');
    if (!menu) return;
    menu.open = false;
    menu.querySelector('summary').focus();
  });

  function find() {
    const words = document.querySelector('#acestep-search input, #acestep-search textarea');
    const asked = (words?.value ?? '').toLowerCase().split(/\s+/).filter(Boolean);
    const liked = document.querySelector('#acestep-favourites input')?.checked ?? false;
    const songs = [...document.querySelectorAll('article.song')];
    for (const song of songs) {
      const found = asked.every((word) => song.dataset.find.includes(word));
      const hidden = !found || (liked && song.dataset.favourite !== 'yes');
      if (song.hidden !== hidden) song.hidden = hidden;
    }
    const none = document.querySelector('#no-match');
    const empty = songs.length > 0 && songs.every((song) => song.hidden);
    if (none && none.hidden === empty) none.hidden = !empty;
  }
  document.addEventListener('input', (event) => {
    if (event.target.closest?.('#acestep-search, #acestep-favourites')) find();
  });
  document.addEventListener('change', (event) => {
    if (event.target.closest?.('#acestep-favourites')) find();
  });

  // A title becomes a field in its place; Enter keeps what is written, Escape does not.
  window.acestepRename = (button, keep) => {
    const title = card(button)?.querySelector('h3');
    if (!title || title.hidden) return;
    const field = document.createElement('input');
    field.value = title.textContent;
    field.maxLength = 60;
    field.setAttribute('aria-label', button.dataset.label);
    title.hidden = true;
    title.after(field);
    field.select();
    field.focus();
    let closed = false;
    const close = (kept) => {
      // Taking the field away blurs it.
      if (closed) return;
      closed = true;
      const text = field.value.trim();
      field.remove();
      title.hidden = false;
      button.focus();
      if (kept && text && text !== title.textContent) keep(text);
    };
    field.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      // The key must not press the button that has the focus next.
      event.preventDefault();
      close(event.key === 'Enter');
    });
    field.addEventListener('blur', () => close(true));
  };

  // Names that the components give themselves are English in every language.
  function rename() {
    for (const input of document.querySelectorAll('.block input[type=number], .block input[type=range]')) {
      const label = input.closest('.block').querySelector('label span, [data-testid=block-info]');
      const name = label?.firstChild?.textContent?.trim() || label?.textContent.trim();
      if (name && input.getAttribute('aria-label') !== name) input.setAttribute('aria-label', name);
    }
    // Choices of one group share a name, or the arrow keys do not lead from one to the next.
    for (const choice of document.querySelectorAll('fieldset.block[id] input[type=radio]')) {
      const group = choice.closest('fieldset').id;
      if (choice.name !== group) choice.name = group;
    }
    const name = document.querySelector('#acestep-title h1')?.textContent;
    const bar = document.querySelector('#acestep-progress progress[value]');
    const title = bar ? `${bar.value} % · ${name}` : name;
    if (title && document.title !== title) document.title = title;
  }

  function redrawn() {
    for (const details of document.querySelectorAll('article.song details[data-fold]')) {
      const open = opened.has(fold(details));
      if (details.open !== open) details.open = open;
    }
    find();
    rename();
  }
  let waiting = false;
  new MutationObserver(() => {
    if (!waiting) {
      waiting = true;
      // No animation frame: a tab in the background gets none, and its title says how far it is.
      setTimeout(() => { waiting = false; redrawn(); }, 30);
    }
    if (!playing) return;
    const audio = document.querySelector(`article.song[data-song="${playing.id}"] audio`);
    if (!audio || !audio.paused || audio.currentTime > 0) return;
    audio.currentTime = playing.at;
    audio.play().catch(() => { playing = null; });
  }).observe(document.documentElement, {
    childList: true, subtree: true, characterData: true, attributeFilter: ['value'],
  });

  document.addEventListener('click', (event) => {
    const line = event.target.closest('[data-seek]');
    if (line) seek(line, Number(line.dataset.seek));
    if (event.target.closest('[data-action=use]')) {
      const form = document.querySelector('#acestep-form');
      form.scrollTo(0, 0);
      form.scrollIntoView({ block: 'nearest' });
    }
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
    const [start, seconds] = [value('acestep-repaint-start'), Number(wave.dataset.seconds)];
    let end = value('acestep-repaint-end');
    if (end === -1 || (end === 0 && start >= 0)) end = seconds;
    show(wave, clamp(start, 0, seconds), clamp(end, 0, seconds));
  });

  // A file that is dropped on the source is chosen as if by its button.
  const dropped = (event) => event.target.closest?.('.source');
  document.addEventListener('dragover', (event) => {
    const box = dropped(event);
    if (!box) return;
    event.preventDefault();
    box.classList.add('dropping');
  });
  document.addEventListener('dragleave', (event) => dropped(event)?.classList.remove('dropping'));
  document.addEventListener('drop', (event) => {
    const box = dropped(event);
    if (!box) return;
    event.preventDefault();
    box.classList.remove('dropping');
    const input = box.querySelector('input[type=file]');
    if (!input || !event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });

  const language = document.cookie.match(/acestep_language=(\w+)/)?.[1];
  if (language) document.documentElement.lang = language;
})();
