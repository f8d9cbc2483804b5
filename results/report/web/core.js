// The page's data, the reader's choices, and the small tools that every part uses.
const data = JSON.parse(document.getElementById('data').textContent);
if (data.format !== 1) throw new Error(`data.format (=${data.format}) must be 1`);
const T = data.trials;
const COUNT = T.trial.length;
const COSTS = ['size_bytes', 'flops', 'latency_ms', 'latency_b64_ms'];
const axisOf = Object.fromEntries(data.axes.map((axis) => [axis.key, axis]));
const memberOf = new Map(data.front.map((member) => [member.index, member]));
const onFront = (i) => memberOf.has(i);
const finished = [];
for (let i = 0; i < COUNT; i += 1) if (T.status[i] === 'finished' && T.score[i] !== null) finished.push(i);
const knee = data.knee ?? -1;
const state = {
  axis: data.axes[0].key, limits: {}, visible: finished, chosen: knee,
  view: 'front', search: '', sort: { key: 'size_bytes', down: false }, page: 0,
};

const byId = (id) => document.getElementById(id);
const percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
const number = (value, digits) => value.toLocaleString('en', { maximumSignificantDigits: digits });
const whole = (value) => value.toLocaleString('en');
const costText = (key, value) => `${number(value / axisOf[key].unit, 4)} ${axisOf[key].short}`;
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? '' : 's'}`;

// Escape a text for plotly, which draws some HTML in texts.
const plain = (text) => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');

const short = (text, limit) => (String(text).length > limit ? `${String(text).slice(0, limit - 1)}…` : String(text));
const SCORE_AXIS = `${plain(data.score_name)} (%)`;

// Make an element with properties and children; strings become text, never markup.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Fill a fieldset with radio buttons; `choices` are [value, text].
function radios(fieldset, name, choices, chosen, onChange) {
  for (const [value, text] of choices) {
    const input = element('input', { type: 'radio', name, value, checked: value === chosen });
    input.addEventListener('change', () => onChange(value));
    fieldset.append(element('label', {}, input, ` ${text}`));
  }
}

// Return [block name, form] of each compressed block of trial i, in network order.
function blocksOf(i) {
  const { names, forms, rows } = data.networks;
  const blocks = [];
  for (let b = 0; b < names.length; b += 1) if (rows[b][i] >= 0) blocks.push([names[b], forms[rows[b][i]]]);
  return blocks;
}

// Layers of a stage that are compressed alike share a line, under the stage's name if they are all its layers.
function networkLines(i, limit = Infinity) {
  const { names, stages } = data.networks, groups = new Map();
  for (const [name, form] of blocksOf(i)) {
    const stage = stages[names.indexOf(name)], key = JSON.stringify([stage, form.text]);
    if (!groups.has(key)) groups.set(key, { stage, text: form.text, alike: [] });
    groups.get(key).alike.push(name);
  }
  const sizes = new Map();
  for (const stage of stages) sizes.set(stage, (sizes.get(stage) ?? 0) + 1);
  const lines = [...groups.values()].map(({ stage, text, alike }) => `${alike.length === sizes.get(stage) ? stage : alike.join(', ')}: ${text}`);
  if (!lines.length) return ['uncompressed'];
  if (lines.length <= limit) return lines;
  return [...lines.slice(0, limit), `and ${lines.length - limit} more blocks`];
}

// Return the score and costs of trial i in one line.
function metricsText(i) {
  const parts = T.score[i] === null ? [] : [percent(T.score[i])];
  for (const key of COSTS) {
    if (axisOf[key] && T[key][i] !== null) parts.push(costText(key, T[key][i]));
  }
  return parts.join(' · ');
}

const seedsOf = (i) => memberOf.get(i)?.seeds ?? 1;
const repeated = (i) => seedsOf(i) > 1;
const interval = (member) => `${(100 * member.score_low).toFixed(2)}–${percent(member.score_high)}`;

// Say how sure the score of trial i is.
function certainty(i) {
  const member = memberOf.get(i), risk = member?.probability_dominated ?? null;
  const doubt = risk === null ? '' : `, dominated with probability ${risk.toFixed(2)}`;
  if (!repeated(i)) return `single seed${doubt}`;
  return `mean of ${member.seeds} seeds ${percent(member.score_mean)} (95 %: ${interval(member)})${doubt}`;
}

// Return the command that exports trial i, '' if it left no model.
function command(i) {
  if (T.model[i] === null) return '';
  const id = data.export.quoted[T.trial[i]] ?? T.trial[i], again = T.model[i] === 'rerun' ? ' --rerun' : '';
  return `${data.export.command} --pick ${id} --out ${data.export.out}${id}${again}`;
}

let toastTimer = 0;
function toast(text) {
  byId('toast').textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { byId('toast').textContent = ''; }, 6000);
}

// The clipboard needs permission. Without it, copy from a text area; if that fails too, show the text to copy by hand.
async function copyCommand(i) {
  const text = command(i);
  if (!text) return toast(`Trial ${T.trial[i]} left no model, so there is nothing to export.`);
  let copied = false;
  try { await navigator.clipboard.writeText(text); copied = true; } catch { copied = copyFromArea(text); }
  return toast(copied ? `Copied: ${text}` : `Copy this by hand: ${text}`);
}

function copyFromArea(text) {
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

// Colors of the page's current theme, because plotly cannot read CSS variables.
const probe = element('span', { hidden: true });
document.body.append(probe);
function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const onTheme = [];  // functions that redraw a picture when the theme changes
const onBudgets = [];  // functions that follow the budgets
const onChoice = [];  // functions that follow the chosen trial

function choose(i) {
  state.chosen = i;
  for (const follow of onChoice) follow();
}

const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ['select2d', 'lasso2d'],
  plotlyServerURL: '', showSendToCloud: false };

function layout(x, y, more = {}) {
  const axisStyle = { gridcolor: color('grid'), linecolor: color('line'), zeroline: false, automargin: true };
  return { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', showlegend: false, hovermode: 'closest',
    font: { family: 'system-ui, sans-serif', size: 13, color: color('ink') }, margin: { l: 56, r: 14, t: 16, b: 48 },
    hoverlabel: { align: 'left', bgcolor: '#1f2937', bordercolor: '#1f2937', font: { color: '#f9fafb', size: 12 } },
    modebar: { bgcolor: 'rgba(0,0,0,0)', color: color('soft'), activecolor: color('accent') },
    legend: { orientation: 'h', x: 0, y: 1.01, yanchor: 'bottom' },
    ...more, xaxis: { ...axisStyle, title: { text: x }, ...more.xaxis }, yaxis: { ...axisStyle, title: { text: y }, ...more.yaxis } };
}

const COST_AXIS = { type: 'log', dtick: 'D2', tickformat: ',~g' };
