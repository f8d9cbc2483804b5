// The table of trials: search, order, pages, CSV.
const PAGE = 25;
const table = byId('table');
const network = (i) => networkLines(i).join('; ');
const errorOf = (i) => (T.error[i] < 0 ? '' : T.errors[T.error[i]]);
const columns = [
  { key: 'trial', title: 'trial', value: (i) => T.trial[i] },
  { key: 'number', title: 'asked', kind: 'number', value: (i) => T.number[i] },
  { key: 'val_top1', title: 'accuracy', kind: 'number', value: (i) => T.val_top1[i], text: (v) => percent(v) },
  ...data.axes.filter((axis) => COSTS.includes(axis.key)).map((axis) => ({ key: axis.key,
    title: { size_bytes: 'size (kB)', flops: 'MFLOPs', latency_ms: 'ms', latency_b64_ms: 'ms for 64' }[axis.key], kind: 'number', value: (i) => T[axis.key][i], text: (v) => number(v / axis.unit, 4) })),
  { key: 'seeds', title: 'seeds', kind: 'number', value: (i) => (T.status[i] === 'finished' ? data.seeds[T.trial[i]]?.seeds ?? 1 : null) },
  { key: 'network', title: 'network', kind: 'text', value: network },
];

let texts = null;  // what the search box looks through, made when it is first used
function matches(i) {
  texts ??= T.trial.map((trial, k) => `${trial} ${T.status[k]} ${network(k)} ${errorOf(k)}`.toLowerCase());
  return state.search.split(/\s+/).every((word) => texts[i].includes(word));
}

function rows() {
  const all = T.trial.map((_, i) => i), visible = new Set(state.visible);
  let chosen = state.view === 'front' ? state.visible.filter((i) => member[i]) : state.view === 'finished' ? state.visible
    : all.filter((i) => (state.budgeted ? visible.has(i) : true));
  if (state.search) chosen = chosen.filter(matches);
  const { value } = columns.find((column) => column.key === state.sort.key), sign = state.sort.down ? -1 : 1;
  const keyed = chosen.map((i) => [value(i), i]);
  keyed.sort(([a, i], [b, j]) => (a === null || b === null ? (a === null) - (b === null) : a < b ? -sign : a > b ? sign : 0) || i - j);
  return keyed.map(([, i]) => i);
}

function drawHead() {
  const cells = columns.map((column) => {
    const sorted = state.sort.key === column.key, button = element('button', { type: 'button' }, column.title);
    button.addEventListener('click', () => {
      state.sort = { key: column.key, down: sorted ? !state.sort.down : column.key === 'val_top1' };
      state.page = 0;
      drawHead(); drawRows();
      table.querySelectorAll('th button')[columns.indexOf(column)].focus();
    });
    return element('th', { scope: 'col', className: column.kind ?? '', ariaSort: sorted ? (state.sort.down ? 'descending' : 'ascending') : 'none' }, button);
  });
  table.tHead.replaceChildren(element('tr', {}, ...cells, element('th', { scope: 'col' }, 'export')));
}

function drawRows() {
  const shown = rows(), pages = Math.max(1, Math.ceil(shown.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const part = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
  table.tBodies[0].replaceChildren(...part.map(rowOf));
  byId('count').textContent = `${plural(shown.length, 'trial')}${state.budgeted ? ' within the budgets' : ''}${state.search ? ' found' : ''}`;
  byId('place').textContent = `page ${state.page + 1} of ${pages}`;
  byId('previous').disabled = state.page === 0;
  byId('next').disabled = state.page >= pages - 1;
  byId('place').parentElement.hidden = pages === 1;
}

function rowOf(i) {
  const cells = columns.map((column) => {
    const value = column.value(i), text = value === null ? '–' : column.text ? column.text(value) : String(value);
    return element('td', { className: column.kind ?? '' }, text);
  });
  const pick = element('button', { type: 'button', className: 'id', title: 'Show this trial beside the chart', onclick: () => choose(i) }, T.trial[i]);
  cells[0].replaceChildren(pick, ...(member[i] ? [element('span', { className: 'badge' }, 'front')] : []),
    ...(i === knee ? [element('span', { className: 'badge knee' }, 'knee')] : []));
  const seeds = columns.findIndex((column) => column.key === 'seeds');
  if (T.status[i] === 'finished') cells[seeds].textContent = repeated(i) ? `${data.seeds[T.trial[i]].seeds}: ${interval(data.seeds[T.trial[i]])}` : 'single seed';
  const last = cells[cells.length - 1], words = element('div', { className: 'clamped', title: last.textContent }, ...last.childNodes);
  if (T.status[i] !== 'finished') words.prepend(element('strong', {}, T.status[i]), ` ${errorOf(i)} `);
  last.replaceChildren(words);
  const copy = element('button', { type: 'button', disabled: !T.kept[i], onclick: () => { choose(i); copyCommand(i); } }, 'copy');
  copy.setAttribute('aria-label', T.kept[i] ? `Copy the export command of trial ${T.trial[i]}` : `Trial ${T.trial[i]} left no model`);
  return element('tr', { className: i === state.chosen ? 'selected' : '' }, ...cells, element('td', {}, copy));
}

// A text that a spreadsheet would run as a formula is marked as text.
function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const costs = data.axes.map((axis) => axis.key);
  const head = ['trial', 'number', 'status', 'front', 'val_top1', ...costs, 'seed', 'total_s', 'seeds', 'val_top1_mean', 'val_top1_low', 'val_top1_high', 'probability_dominated', 'network', 'error', 'export'];
  const body = rows().map((i) => {
    const row = data.seeds[T.trial[i]] ?? {};
    return [T.trial[i], T.number[i], T.status[i], member[i], T.val_top1[i], ...costs.map((key) => T[key][i]), T.seed[i], T.total_s[i],
      row.seeds ?? (T.status[i] === 'finished' ? 1 : null), row.val_top1_mean, row.val_top1_low, row.val_top1_high, row.probability_dominated, network(i), errorOf(i), command(i)];
  });
  return [head, ...body].map((line) => line.map(cell).join(',')).join('\r\n') + '\r\n';
}

function download() {
  const url = URL.createObjectURL(new Blob([csv()], { type: 'text/csv' }));
  const link = element('a', { href: url, download: `${data.study.replace(/[^\w.-]/g, '_')}-${state.view}.csv` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function startTable() {
  radios(byId('views'), 'view', [['front', 'front'], ['finished', 'finished'], ['all', 'all']], state.view, (view) => { state.view = view; state.page = 0; drawRows(); });
  byId('search').addEventListener('input', () => { state.search = byId('search').value.trim().toLowerCase(); state.page = 0; drawRows(); });
  byId('csv').addEventListener('click', download);
  byId('previous').addEventListener('click', () => { state.page -= 1; drawRows(); });
  byId('next').addEventListener('click', () => { state.page += 1; drawRows(); });
  drawHead();
  drawRows();
  filtered.push(drawRows);
  chosenChanged.push(drawRows);
}
