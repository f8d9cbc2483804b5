// Parallel coordinates of knobs and objectives; drawn as SVG, so that they are there without WebGL too.
const LINES = 250;  // lines of trials beyond the front
const AXES = 12;  // knobs side by side
const KNOBS = ['basis', 'harmonics_y', 'harmonics_x', 'allocation', 'pruning_rate', 'groups', 'transform', 'bits', 'exponent_block', 'exponent_axis', 'activation_block'];
const knobPlot = byId('knob-plot');
const knobViews = [];

// A knob's value of trial i, null where the block stays as it was.
function knobValue(block, knob, i) {
  const form = data.networks.rows[block][i];
  return form < 0 ? null : data.networks.forms[form].knobs[knob] ?? null;
}

// The knobs that differ between trials: [block index, knob, distinct values in order, null first].
function varyingKnobs() {
  const { names, forms, rows } = data.networks, found = [];
  names.forEach((_, block) => {
    const used = [...new Set(rows[block])];
    for (const knob of KNOBS) {
      const values = [...new Set(used.map((form) => (form < 0 ? null : forms[form].knobs[knob] ?? null)))];
      if (values.length > 1) found.push({ block, knob, values: values.sort((a, b) => (a === null ? -1 : b === null ? 1 : a < b ? -1 : 1)) });
    }
  });
  return found;
}

function addViews() {
  const all = varyingKnobs(), groups = [];
  if (data.insight) {
    const name = (item) => `${data.networks.names[item.block]}.${item.knob}`;
    const top = [...data.insight.importance].sort((a, b) => b.share - a.share).slice(0, 8);
    groups.push(['the most important knobs', top.flatMap((row) => all.filter((item) => name(item) === row.knob || (row.knob === name(item).replace(/_[yx]$/, ''))))]);
  }
  for (const knob of new Set(all.map((item) => item.knob))) groups.push([`${knob} of every block`, all.filter((item) => item.knob === knob)]);
  for (const block of new Set(all.map((item) => item.block))) groups.push([`every knob of ${data.networks.names[block]}`, all.filter((item) => item.block === block)]);
  for (const [title, items] of groups) {
    for (let start = 0; start < items.length; start += AXES) {
      const part = items.length > AXES ? `${title}, ${start + 1} to ${Math.min(start + AXES, items.length)}` : title;
      knobViews.push([part, items.slice(start, start + AXES)]);
    }
  }
  if (!knobViews.length) knobViews.push(['objectives', []]);
  byId('knob-view').append(...knobViews.map(([title], index) => element('option', { value: index }, short(title, 60))));
}

// Axes as {title, at(trial) in 0..1 or null, ticks: [place, text]}; lines fan out a little where many share a value.
function knobAxis({ block, knob, values }) {
  const places = new Map(values.map((value, index) => [value, (index + 0.5) / values.length]));
  const fan = (i) => (((i * 0.618034) % 1) - 0.5) * (0.5 / values.length);
  return { title: `${plain(short(data.networks.names[block], 16))}<br>${plain(knob)}`, at: (i) => places.get(knobValue(block, knob, i)) + fan(i),
    ticks: values.map((value) => [places.get(value), value === null ? 'none' : plain(short(value, 12))]) };
}

function figureAxis(key, title, scale, text) {
  const values = finished.map((i) => T[key][i]).filter((value) => value !== null && value > 0).map(scale);
  if (!values.length) return null;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b)), width = high - low || 1;
  return { title, at: (i) => (T[key][i] > 0 ? (scale(T[key][i]) - low) / width : null), ticks: [[0, text(low)], [1, text(high)]] };
}

function axesShown() {
  const items = knobViews[Number(byId('knob-view').value)]?.[1] ?? [];
  const costs = COSTS.filter((key) => axisOf[key])
    .map((key) => figureAxis(key, axisOf[key].title.replace(' (', '<br>('), Math.log, (value) => number(Math.exp(value) / axisOf[key].unit, 3)));
  return [...items.map(knobAxis), ...costs, figureAxis('val_top1', 'accuracy<br>(%)', (value) => value, (value) => (100 * value).toFixed(1))].filter(Boolean);
}

// Where there are many lines each is faint, so that they do not become one area.
function lines(indices, axes, line, name) {
  const x = [], y = [], customdata = [];
  for (const i of indices) {
    axes.forEach((axis, place) => { x.push(place); y.push(axis.at(i)); customdata.push(i); });
    x.push(null); y.push(null); customdata.push(null);
  }
  return { type: 'scatter', mode: 'lines', name, x, y, customdata, line, hoverinfo: 'none', visible: indices.length > 0,
    opacity: Math.max(0.06, Math.min(1, 60 / (indices.length || 1))) };
}

// Every so manyth, over the whole range.
function sampled(indices, most) {
  const step = Math.ceil(indices.length / most) || 1;
  return indices.filter((_, place) => place % step === 0);
}

function drawKnobs() {
  const axes = axesShown();
  const members = state.visible.filter((i) => member[i]), others = state.visible.filter((i) => !member[i]);
  const shown = sampled(others, LINES), chosen = state.visible.includes(state.chosen) ? [state.chosen] : [];
  byId('knob-sample').textContent = shown.length === others.length ? '' : `A sample: ${whole(shown.length)} of ${plural(others.length, 'other trial')}, and all ${whole(members.length)} of the front.`;
  const small = { showarrow: false, font: { size: 11, color: color('ink') } };
  const annotations = axes.flatMap((axis, place) => [
    { ...small, x: place, y: 1.03, yanchor: 'bottom', text: axis.title, font: { size: 11, color: color('soft') } },
    ...axis.ticks.map(([y, text]) => ({ ...small, x: place, y, xanchor: 'left', xshift: 3, text, bgcolor: color('card'), borderpad: 1 }))]);
  const shapes = axes.map((_, place) => ({ type: 'line', x0: place, x1: place, y0: 0, y1: 1, line: { color: color('soft'), width: 1 } }));
  const traces = [lines(shown, axes, { color: color('other'), width: 0.7 }, 'other trials'), lines(members, axes, { color: color('front'), width: 1.5 }, 'front'),
    lines(chosen, axes, { color: color('mark'), width: 3.5 }, 'chosen')];
  const look = layout('', '', { annotations, shapes, showlegend: true, legend: { orientation: 'h', x: 0, y: -0.02, yanchor: 'top' }, margin: { l: 16, r: 50, t: 56, b: 34 },
    xaxis: { visible: false, range: [-0.2, axes.length - 0.55], fixedrange: true }, yaxis: { visible: false, range: [-0.05, 1.05], fixedrange: true } });
  return Plotly.react(knobPlot, traces, look, { ...CONFIG, displayModeBar: false });
}

async function startKnobs() {
  addViews();
  byId('knob-view').addEventListener('change', drawKnobs);
  await drawKnobs();
  knobPlot.on('plotly_click', (event) => { const i = event.points[0].customdata; if (i !== null && i !== undefined) choose(i); });
  drawings.push(drawKnobs);
  filtered.push(drawKnobs);
  chosenChanged.push(drawKnobs);
}
