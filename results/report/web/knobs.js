// Parallel coordinates of knobs and objectives, drawn as SVG so that they work without WebGL too.
const MAX_LINES = 250;  // trials beyond the front
const MAX_AXES = 12;  // knobs side by side
const knobPlot = byId('knob-plot');
const knobViews = [];

// Return a knob's value in a form (undefined: uncompressed), null for none.
const valueIn = (form, knob) => form?.knobs[knob] ?? null;

// Return the knobs that differ between trials, each with its distinct values in order, null first.
function varyingKnobs() {
  const { names, forms, rows, knobs } = data.networks, varying = [];
  names.forEach((_, block) => {
    const used = [...new Set(rows[block])];
    for (const knob of knobs) {
      const values = [...new Set(used.map((index) => valueIn(forms[index], knob)))];
      if (values.length > 1) varying.push({ block, knob, values: values.sort((a, b) => (a === null ? -1 : b === null ? 1 : a < b ? -1 : 1)) });
    }
  });
  return varying;
}

function addViews() {
  const { names, stages } = data.networks, all = varyingKnobs(), groups = [];
  const top = data.importance.shares.slice(0, 8).map((important) => important.knob);
  const fullName = (item) => `${names[item.block]}.${item.knob}`;
  groups.push(['the most important knobs', top.flatMap((name) => all.filter((item) => fullName(item) === name))]);
  for (const knob of new Set(all.map((item) => item.knob))) groups.push([`${knob} of every block`, all.filter((item) => item.knob === knob)]);
  for (const stage of new Set(all.map((item) => stages[item.block]))) groups.push([`every knob of ${stage}`, all.filter((item) => stages[item.block] === stage)]);
  for (const [title, items] of groups) {
    for (let start = 0; start < items.length; start += MAX_AXES) {
      const part = items.length > MAX_AXES ? `${title}, ${start + 1} to ${Math.min(start + MAX_AXES, items.length)}` : title;
      knobViews.push([part, items.slice(start, start + MAX_AXES)]);
    }
  }
  if (!knobViews.length) knobViews.push(['objectives', []]);
  byId('knob-view').append(...knobViews.map(([title], index) => element('option', { value: index }, short(title, 60))));
}

// Axes are {title, at(trial): 0 to 1 or null, ticks: [position, text]}. Lines that share a value fan out a little.
function knobAxis({ block, knob, values }) {
  const positions = new Map(values.map((value, index) => [value, (index + 0.5) / values.length]));
  const fan = (i) => (((i * 0.618034) % 1) - 0.5) * (0.5 / values.length);
  const { names, forms, rows } = data.networks;
  return { title: `${plain(short(names[block], 16))}<br>${plain(knob)}`, at: (i) => positions.get(valueIn(forms[rows[block][i]], knob)) + fan(i),
    ticks: values.map((value) => [positions.get(value), value === null ? 'none' : plain(short(value, 12))]) };
}

function metricAxis(key, title, scale, text) {
  const values = finished.map((i) => T[key][i]).filter((value) => value !== null && value > 0).map(scale);
  if (!values.length) return null;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b)), width = high - low || 1;
  return { title, at: (i) => (T[key][i] > 0 ? (scale(T[key][i]) - low) / width : null), ticks: [[0, text(low)], [1, text(high)]] };
}

function shownAxes() {
  const items = knobViews[Number(byId('knob-view').value)]?.[1] ?? [];
  const costs = COSTS.filter((key) => axisOf[key])
    .map((key) => metricAxis(key, axisOf[key].title.replace(' (', '<br>('), Math.log, (value) => number(Math.exp(value) / axisOf[key].unit, 3)));
  const score = metricAxis('score', `${plain(short(data.score_name, 16))}<br>(%)`, (value) => value, (value) => (100 * value).toFixed(1));
  return [...items.map(knobAxis), ...costs, score].filter(Boolean);
}

// Many lines are each drawn fainter, so that they do not merge into one area.
function lines(indices, axes, line, name) {
  const x = [], y = [], customdata = [];
  for (const i of indices) {
    axes.forEach((shown, index) => { x.push(index); y.push(shown.at(i)); customdata.push(i); });
    x.push(null); y.push(null); customdata.push(null);
  }
  return { type: 'scatter', mode: 'lines', name, x, y, customdata, line, hoverinfo: 'none', visible: indices.length > 0,
    opacity: Math.max(0.06, Math.min(1, 60 / (indices.length || 1))) };
}

// Take at most `limit` trials at equal steps over the whole range.
function sampled(indices, limit) {
  const step = Math.ceil(indices.length / limit) || 1;
  return indices.filter((_, index) => index % step === 0);
}

function drawKnobs() {
  const axes = shownAxes();
  const members = state.visible.filter(onFront), others = state.visible.filter((i) => !onFront(i));
  const drawn = sampled(others, MAX_LINES), chosen = state.visible.includes(state.chosen) ? [state.chosen] : [];
  byId('knob-sample').textContent = drawn.length === others.length ? '' : `A sample: ${whole(drawn.length)} of ${plural(others.length, 'other trial')}, and all ${whole(members.length)} of the front.`;
  const small = { showarrow: false, font: { size: 11, color: color('ink') } };
  const annotations = axes.flatMap((shown, index) => [
    { ...small, x: index, y: 1.03, yanchor: 'bottom', text: shown.title, font: { size: 11, color: color('soft') } },
    ...shown.ticks.map(([y, text]) => ({ ...small, x: index, y, xanchor: 'left', xshift: 3, text, bgcolor: color('card'), borderpad: 1 }))]);
  const shapes = axes.map((_, index) => ({ type: 'line', x0: index, x1: index, y0: 0, y1: 1, line: { color: color('soft'), width: 1 } }));
  const traces = [lines(drawn, axes, { color: color('other'), width: 0.7 }, 'other trials'), lines(members, axes, { color: color('front'), width: 1.5 }, 'front'),
    lines(chosen, axes, { color: color('mark'), width: 3.5 }, 'chosen')];
  const style = layout('', '', { annotations, shapes, showlegend: true, legend: { orientation: 'h', x: 0, y: -0.02, yanchor: 'top' }, margin: { l: 16, r: 50, t: 56, b: 34 },
    xaxis: { visible: false, range: [-0.2, axes.length - 0.55], fixedrange: true }, yaxis: { visible: false, range: [-0.05, 1.05], fixedrange: true } });
  return Plotly.react(knobPlot, traces, style, { ...CONFIG, displayModeBar: false });
}

async function startKnobs() {
  addViews();
  byId('knob-view').addEventListener('change', drawKnobs);
  await drawKnobs();
  knobPlot.on('plotly_click', (event) => { const i = event.points[0].customdata; if (i !== null && i !== undefined) choose(i); });
  onTheme.push(drawKnobs);
  onBudgets.push(drawKnobs);
  onChoice.push(drawKnobs);
}
