// Menu and search of the pages that tests/docs.py builds. The index, search.js, is loaded at the first search.
const up = document.documentElement.dataset.up;
const [menu, box, list] = ['menu', 'search', 'found'].map(id => document.getElementById(id));
document.documentElement.classList.add('js');
menu.onclick = () => menu.setAttribute('aria-expanded', document.body.classList.toggle('menu'));

function load() {
  load.done ??= new Promise(ready => {
    const script = document.createElement('script');
    script.src = up + 'search.js';
    script.onload = ready;
    document.head.append(script);
  });
  return load.done;
}

function rank([title, heading, url, text], words) {
  let sum = /^start\/(?!api)/.test(url) * 15;
  for (const word of words) {
    const [t, h, x] = [title, heading, text].map(s => s.toLowerCase());
    const whole = (t === word) * 40 + (h === word) * 60, part = t.includes(word) * 12 + h.includes(word) * 20;
    const found = whole + part + Math.min(x.split(word).length - 1, 5);
    if (!found) return 0;
    sum += found;
  }
  return sum;
}

function line([title, heading, url, text], words) {
  const item = document.createElement('li'), link = document.createElement('a'), more = document.createElement('small');
  const at = Math.max(0, text.toLowerCase().indexOf(words[0]) - 40);
  link.href = up + url;
  link.textContent = heading ? `${title} › ${heading}` : title;
  more.textContent = (at ? '…' : '') + text.slice(at, at + 120) + '…';
  item.append(link, more);
  return item;
}

async function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(w => w.length > 1);
  list.hidden = !words.length;
  if (!words.length) return;
  await load();
  const best = PAGES.map(p => [rank(p, words), p]).filter(r => r[0]).sort((a, b) => b[0] - a[0]).slice(0, 12);
  list.replaceChildren(...best.map(r => line(r[1], words)));
  if (!best.length) list.textContent = 'nothing found';
}

box.oninput = search;
box.onkeydown = e => { if (e.key === 'Enter') list.querySelector('a')?.click(); };
document.addEventListener('keydown', e => {
  if (e.key === 'Escape') list.hidden = true;
  if (e.key === '/' && document.activeElement !== box) { e.preventDefault(); box.focus(); }
});
document.addEventListener('click', e => { if (!list.contains(e.target) && e.target !== box) list.hidden = true; });
document.querySelector('nav.site .here')?.scrollIntoView({ block: 'nearest' });
