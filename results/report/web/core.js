// The page's data, what the reader has chosen, and the small tools that every part uses.
const data = JSON.parse(document.getElementById('data').textContent);
const T = data.trials;
const COUNT = T.trial.length;
const COSTS = ['size_bytes', 'flops', 'latency_ms', 'latency_b64_ms'];
const axisOf = Object.fromEntries(data.axes.map((axis) => [axis.key, axis]));
const member = new Uint8Array(COUNT);
for (const i of data.front) member[i] = 1;
const finished = [];
for (let i = 0; i < COUNT; i += 1) if (T.status[i] === 'finished' && T.val_top1[i] !== null) finished.push(i);
const knee = data.knee === null ? -1 : T.trial.indexOf(data.knee);
const state = {
  axis: data.axes[0].key, limits: {}, visible: finished, chosen: knee,
  view: 'front', search: '', sort: { key: 'size_bytes', down: false }, page: 0,
};

const byId = (id) => document.getElementById(id);
const percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
const number = (value, digits) => value.toLocaleString('en', { maximumSignificantDigits: digits });
const whole = (value) => value.toLocaleString('en');
const cost = (key, value) => `${number(value / axisOf[key].unit, 4)} ${axisOf[key].short}`;
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? '' : 's'}`;

// plotly draws a little HTML of its own in texts
const plain = (text) => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');

const short = (text, most) => (String(text).length > most ? `${String(text).slice(0, most - 1)}…` : String(text));

// An element with properties and children; texts stay texts.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// A row of radio buttons in a fieldset: `choices` are [value, text].
function radios(fieldset, name, choices, chosen, onChange) {
  for (const [value, text] of choices) {
    const input = element('input', { type: 'radio', name, value, checked: value === chosen });
    input.addEventListener('change', () => onChange(value));
    fieldset.append(element('label', {}, input, ` ${text}`));
  }
}

// What was done to each compressed block of trial i: [block, form], in network order.
function blocksOf(i) {
  const { names, forms, rows } = data.networks;
  const found = [];
  for (let b = 0; b < names.length; b += 1) if (rows[b][i] >= 0) found.push([names[b], forms[rows[b][i]]]);
  return found;
}

function networkLines(i, most = Infinity) {
  const lines = blocksOf(i).map(([name, form]) => `${name}: ${form.text}`);
  if (!lines.length) return ['uncompressed'];
  if (lines.length <= most) return lines;
  return [...lines.slice(0, most), `and ${lines.length - most} more blocks`];
}

function figures(i) {
  const parts = T.val_top1[i] === null ? [] : [percent(T.val_top1[i])];
  for (const key of COSTS) {
    if (axisOf[key] && T[key][i] !== null) parts.push(cost(key, T[key][i]));
  }
  return parts.join(' · ');
}

// What repeats with other seeds say of trial i.
const repeated = (i) => (data.seeds[T.trial[i]]?.seeds ?? 1) > 1;

function certainty(i) {
  const row = data.seeds[T.trial[i]], beaten = row?.probability_dominated ?? null;
  const doubt = beaten === null ? '' : `, dominated with probability ${beaten.toFixed(2)}`;
  if (!repeated(i)) return `single seed${doubt}`;
  return `mean of ${row.seeds} seeds ${percent(row.val_top1_mean)} (95 %: ${interval(row)})${doubt}`;
}

const interval = (row) => `${(100 * row.val_top1_low).toFixed(2)}–${percent(row.val_top1_high)}`;

const quoted = (text) => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);

// The command that exports trial i, '' where it left no model.
function command(i) {
  if (!T.kept[i]) return '';
  const trial = T.trial[i], again = T.kept[i] === 2 ? ' --rerun' : '';
  return `${data.command} --pick ${quoted(trial)} --format safetensors --out ${quoted(`${data.study}-${trial}`)}${again}`;
}

let toastTimer = 0;
function toast(text) {
  byId('toast').textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId('toast').textContent = ''; }, 6000);
}

// The clipboard needs permission; where there is none, the old way, and where that fails the text to copy by hand.
async function copyCommand(i) {
  const text = command(i);
  if (!text) return toast(`Trial ${T.trial[i]} left no model, so there is nothing to export.`);
  let copied = false;
  try { await navigator.clipboard.writeText(text); copied = true; } catch { copied = copyByHand(text); }
  return toast(copied ? `Copied: ${text}` : `Copy this by hand: ${text}`);
}

function copyByHand(text) {
  const before = document.activeElement;
  const area = element('textarea', { value: text, readOnly: true });
  document.body.append(area);
  area.select();
  let copied = false;
  try { copied = document.execCommand('copy'); } catch { copied = false; }
  area.remove();
  before?.focus?.({ preventScroll: true });
  return copied;
}

// Colors as the page's theme has them now; plotly cannot read CSS variables.
const probe = element('span', { hidden: true });
document.body.append(probe);
function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const drawings = [];  // functions that draw a picture anew when the theme changes
const filtered = [];  // functions that follow the budgets
const chosenChanged = [];  // functions that follow the chosen trial

function choose(i) {
  state.chosen = i;
  for (const follow of chosenChanged) follow();
}

const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ['select2d', 'lasso2d'],
  plotlyServerURL: '', showSendToCloud: false };

function layout(x, y, more = {}) {
  const axis = { gridcolor: color('grid'), linecolor: color('line'), zeroline: false, automargin: true };
  return { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', showlegend: false, hovermode: 'closest',
    font: { family: 'system-ui, sans-serif', size: 13, color: color('ink') }, margin: { l: 56, r: 14, t: 16, b: 48 },
    hoverlabel: { align: 'left', bgcolor: '#1f2937', bordercolor: '#1f2937', font: { color: '#f9fafb', size: 12 } },
    modebar: { bgcolor: 'rgba(0,0,0,0)', color: color('soft'), activecolor: color('accent') },
    legend: { orientation: 'h', x: 0, y: 1.01, yanchor: 'bottom' },
    ...more, xaxis: { ...axis, title: { text: x }, ...more.xaxis }, yaxis: { ...axis, title: { text: y }, ...more.yaxis } };
}

const COST_AXIS = { type: 'log', dtick: 'D2', tickformat: ',~g' };
