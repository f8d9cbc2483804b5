// The table of trials: search, order, pages, CSV.
const PAGE = 25;
const table = byId('table');
const networkText = (i) => networkLines(i).join('; ');
const errorOf = (i) => (T.error[i] < 0 ? '' : T.errors[T.error[i]]);
const columns = [
  { key: 'trial', title: 'trial', value: (i) => T.trial[i] },
  { key: 'number', title: 'number', kind: 'number', value: (i) => T.number[i] },
  { key: 'score', title: data.score_name, kind: 'number', value: (i) => T.score[i], text: (v) => percent(v) },
  ...data.axes.filter((axis) => COSTS.includes(axis.key)).map((axis) => ({ key: axis.key,
    title: { size_bytes: 'size (kB)', flops: 'MFLOPs', latency_ms: 'ms', latency_b64_ms: 'ms for 64' }[axis.key], kind: 'number', value: (i) => T[axis.key][i], text: (v) => number(v / axis.unit, 4) })),
  { key: 'seeds', title: 'seeds', kind: 'number', value: (i) => (T.status[i] === 'finished' ? seedsOf(i) : null) },
  { key: 'network', title: 'network', kind: 'text', value: networkText },
];

let texts = null;  // each trial's text for the search box, made when it is first used
function matches(i) {
  texts ??= T.trial.map((trial, k) => `${trial} ${T.status[k]} ${networkText(k)} ${errorOf(k)}`.toLowerCase());
  return state.search.split(/\s+/).every((word) => texts[i].includes(word));
}

// Return the trials of the chosen view that match the budgets and the search, in the table's order.
function listed() {
  const all = T.trial.map((_, i) => i), visible = new Set(state.visible);
  let shown = state.view === 'front' ? state.visible.filter(onFront) : state.view === 'finished' ? state.visible
    : all.filter((i) => (state.budgeted ? visible.has(i) : true));
  if (state.search) shown = shown.filter(matches);
  const { value } = columns.find((column) => column.key === state.sort.key), sign = state.sort.down ? -1 : 1;
  const keyed = shown.map((i) => [value(i), i]);
  keyed.sort(([a, i], [b, j]) => (a === null || b === null ? (a === null) - (b === null) : a < b ? -sign : a > b ? sign : 0) || i - j);
  return keyed.map(([, i]) => i);
}

function drawHead() {
  const cells = columns.map((column) => {
    const sorted = state.sort.key === column.key, button = element('button', { type: 'button' }, column.title);
    button.addEventListener('click', () => {
      state.sort = { key: column.key, down: sorted ? !state.sort.down : column.key === 'score' };
      state.page = 0;
      drawHead(); drawRows();
      table.querySelectorAll('th button')[columns.indexOf(column)].focus();
    });
    return element('th', { scope: 'col', className: column.kind ?? '', ariaSort: sorted ? (state.sort.down ? 'descending' : 'ascending') : 'none' }, button);
  });
  table.tHead.replaceChildren(element('tr', {}, ...cells, element('th', { scope: 'col' }, 'export')));
}

function drawRows() {
  const shown = listed(), pages = Math.max(1, Math.ceil(shown.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const part = shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
  table.tBodies[0].replaceChildren(...part.map(tableRow));
  byId('count').textContent = `${plural(shown.length, 'trial')}${state.budgeted ? ' within the budgets' : ''}${state.search ? ' found' : ''}`;
  byId('page').textContent = `page ${state.page + 1} of ${pages}`;
  byId('previous').disabled = state.page === 0;
  byId('next').disabled = state.page >= pages - 1;
  byId('page').parentElement.hidden = pages === 1;
}

function tableRow(i) {
  const cells = columns.map((column) => {
    const value = column.value(i), text = value === null ? '–' : column.text ? column.text(value) : String(value);
    return element('td', { className: column.kind ?? '' }, text);
  });
  const pick = element('button', { type: 'button', className: 'id', title: 'Show this trial beside the chart', onclick: () => choose(i) }, T.trial[i]);
  cells[0].replaceChildren(pick, ...(onFront(i) ? [element('span', { className: 'badge' }, 'front')] : []),
    ...(i === knee ? [element('span', { className: 'badge knee' }, 'knee')] : []));
  const seeds = columns.findIndex((column) => column.key === 'seeds');
  if (T.status[i] === 'finished') cells[seeds].textContent = repeated(i) ? `${seedsOf(i)}: ${interval(memberOf.get(i))}` : 'single seed';
  const last = cells[cells.length - 1], words = element('div', { className: 'clamped', title: last.textContent }, ...last.childNodes);
  if (T.status[i] !== 'finished') words.prepend(element('strong', {}, T.status[i]), ` ${errorOf(i)} `);
  last.replaceChildren(words);
  const copy = element('button', { type: 'button', disabled: T.model[i] === null, onclick: () => { choose(i); copyCommand(i); } }, 'copy');
  copy.setAttribute('aria-label', T.model[i] === null ? `Trial ${T.trial[i]} left no model` : `Copy the export command of trial ${T.trial[i]}`);
  return element('tr', { className: i === state.chosen ? 'selected' : '' }, ...cells, element('td', {}, copy));
}

// Write one value of a CSV file. A text that a spreadsheet would run as a formula is marked as text.
function csvCell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const costs = data.axes.map((axis) => axis.key), name = data.score_name;
  const head = ['trial', 'number', 'status', 'front', name, ...costs, 'seed', 'total_s', 'seeds', `${name}_mean`, `${name}_low`, `${name}_high`, 'probability_dominated', 'network', 'error', 'export'];
  const body = listed().map((i) => {
    const member = memberOf.get(i);
    return [T.trial[i], T.number[i], T.status[i], onFront(i) ? 1 : 0, T.score[i], ...costs.map((key) => T[key][i]), T.seed[i], T.total_s[i],
      T.status[i] === 'finished' ? seedsOf(i) : null, member?.score_mean, member?.score_low, member?.score_high, member?.probability_dominated, networkText(i), errorOf(i), command(i)];
  });
  return [head, ...body].map((line) => line.map(csvCell).join(',')).join('\r\n') + '\r\n';
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
  onBudgets.push(drawRows);
  onChoice.push(drawRows);
}
