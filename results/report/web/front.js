// The chart of accuracy against a cost, by pointer and by keyboard.
const MANY = 2000;  // points beyond the front that are drawn one by one
const front = byId('front-plot');

// Trials that would lie on top of each other: one for each spot of the chart.
function thinned(indices, key) {
  if (indices.length <= MANY) return indices;
  const xs = indices.map((i) => Math.log(T[key][i])), ys = indices.map((i) => T.val_top1[i]);
  const range = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const [left, right] = range(xs), [low, high] = range(ys);
  const taken = new Set();
  return indices.filter((_, k) => {
    const column = Math.floor(59 * (xs[k] - left) / (right - left || 1));
    const spot = column + 60 * Math.floor(39 * (ys[k] - low) / (high - low || 1));
    return !taken.has(spot) && taken.add(spot);
  });
}

// What stands beside the pointer: a trial's network block by block, or a landmark's text.
function showTip(event) {
  const { customdata: i, data: trace, pointIndex, bbox } = event.points[0];
  const tip = byId('tip'), lines = trace.meta ? trace.meta[pointIndex] : [T.trial[i], figures(i), certainty(i), ...networkLines(i, 20)];
  tip.replaceChildren(element('strong', {}, lines[0]), ...lines.slice(1).map((line) => element('div', {}, line)));
  tip.hidden = false;
  const box = front.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
  const right = box.left + bbox.x1 + 12, left = box.left + bbox.x0 - 12 - width;
  tip.style.left = `${Math.max(4, right + width < innerWidth ? right : left)}px`;
  tip.style.top = `${Math.max(4, Math.min(box.top + bbox.y0 - 10, innerHeight - height - 4))}px`;
}

function points(name, indices, marker) {
  return { type: 'scatter', mode: 'markers', name, x: indices.map((i) => T[state.axis][i] / axisOf[state.axis].unit),
    y: indices.map((i) => 100 * T.val_top1[i]), customdata: indices, marker, hoverinfo: 'none', visible: indices.length ? true : false };
}

function staircase(indices) {
  const key = state.axis, kept = [];
  for (const i of [...indices].sort((a, b) => T[key][a] - T[key][b] || T.val_top1[b] - T.val_top1[a])) {
    if (!kept.length || T.val_top1[i] > T.val_top1[kept[kept.length - 1]]) kept.push(i);
  }
  return { ...points('best', kept, {}), mode: 'lines', hoverinfo: 'skip', showlegend: false,
    line: { color: color('front'), width: 1.5, shape: 'hv', dash: 'dot' } };
}

function intervals(indices) {
  const rows = indices.filter(repeated).map((i) => [i, data.seeds[T.trial[i]]]);
  return { type: 'scatter', mode: 'markers', name: 'mean of seeds, 95 %', hoverinfo: 'skip', visible: rows.length > 0,
    x: rows.map(([i]) => T[state.axis][i] / axisOf[state.axis].unit), y: rows.map(([, row]) => 100 * row.val_top1_mean),
    marker: { symbol: 'line-ew', size: 11, line: { width: 2, color: color('front') } },
    error_y: { type: 'data', symmetric: false, color: color('front'), thickness: 1.6, width: 4,
      array: rows.map(([, row]) => 100 * (row.val_top1_high - row.val_top1_mean)),
      arrayminus: rows.map(([, row]) => 100 * (row.val_top1_mean - row.val_top1_low)) } };
}

function landmark(name, rows, marker) {
  const shown = rows.filter((row) => row.at[state.axis] !== undefined && row.at.val_top1 !== undefined);
  return { type: 'scatter', mode: 'markers', name, marker, visible: shown.length > 0, hoverinfo: 'none', meta: shown.map((row) => row.lines),
    x: shown.map((row) => row.at[state.axis] / axisOf[state.axis].unit), y: shown.map((row) => 100 * row.at.val_top1) };
}

function baselineText() {
  const costs = COSTS.filter((key) => axisOf[key] && data.baseline[key] !== undefined);
  return [percent(data.baseline.val_top1), ...costs.map((key) => cost(key, data.baseline[key]))].join(' · ');
}

function publishedLines(row) {
  const kept = `keeps ${(100 * row.size).toFixed(1)} % of the size, ${(100 * row.flops).toFixed(1)} % of the FLOPs`;
  return ['published elsewhere, on other training data', `${row.paper}: ${row.name}, ${row.data}`,
    `${row.top1.toFixed(2)} % from a baseline of ${row.baseline.toFixed(2)} %`, kept,
    'placed by its loss off this study’s baseline'];
}

function drawFront() {
  const axis = axisOf[state.axis];
  const usable = state.visible.filter((i) => T[state.axis][i] > 0);
  const others = usable.filter((i) => !member[i]), members = usable.filter((i) => member[i]);
  const drawn = thinned(others, state.axis);
  const alone = members.filter((i) => !repeated(i)), sure = members.filter(repeated);
  const any = data.front.some(repeated), size = members.length > 400 ? 6 : 10;
  const blue = { color: color('front'), size };
  const hollow = { ...blue, symbol: 'circle-open', line: { width: 2 } };
  const chosen = usable.includes(state.chosen) ? [state.chosen] : [];
  const traces = [
    points('other trials', drawn, { color: color('other'), size: 6 }), staircase(usable), intervals(members),
    points('front, single seed', alone, any ? hollow : blue), points('front, repeated', sure, blue),
    points('knee', usable.includes(knee) ? [knee] : [], { color: color('mark'), symbol: 'diamond-open', size: 17, line: { width: 2 } }),
    landmark('uncompressed', [{ at: data.baseline, lines: ['uncompressed', baselineText()] }], { color: color('base'), symbol: 'diamond', size: 13 }),
    landmark('published elsewhere', data.published.map((row) => ({ at: row.here, lines: publishedLines(row) })),
      { color: color('published'), symbol: 'x', size: 9 }),
    { ...points('chosen', chosen, { color: color('ink'), symbol: 'circle-open', size: 22, line: { width: 2 } }), hoverinfo: 'skip' },
  ];
  byId('sample').textContent = drawn.length === others.length ? '' : `A sample: ${whole(drawn.length)} of ${plural(others.length, 'other trial')} are drawn, `
    + `one for each spot of the chart, and all ${whole(members.length)} of the front; the budgets, the best and the table know all.`;
  front.setAttribute('aria-label', `Accuracy against ${axis.title}: ${plural(members.length, 'trial')} of the front and ${whole(others.length)} others`);
  const look = layout(axis.title, 'validation accuracy (%)', { showlegend: true, margin: { l: 56, r: 14, t: 60, b: 48 }, xaxis: COST_AXIS });
  if (front.clientWidth < 560) look.legend = { ...look.legend, entrywidth: 0.48, entrywidthmode: 'fraction', font: { size: 11 } };
  return Plotly.react(front, traces, { ...look, uirevision: state.axis }, CONFIG);
}

function walk(event) {
  if (event.target !== front || event.ctrlKey || event.metaKey || event.altKey) return;
  const members = state.visible.filter((i) => member[i] && T[state.axis][i] !== null).sort((a, b) => T[state.axis][a] - T[state.axis][b]);
  const place = members.indexOf(state.chosen), last = members.length - 1;
  const steps = { ArrowRight: place + 1, ArrowUp: place + 1, ArrowLeft: place < 0 ? last : place - 1, ArrowDown: place < 0 ? last : place - 1, Home: 0, End: last };
  if (event.key in steps && members.length) {
    choose(members[Math.min(last, Math.max(0, steps[event.key]))]);
    toast(`${T.trial[state.chosen]}: ${figures(state.chosen)}. ${networkLines(state.chosen).join('; ')}`);
  } else if (event.key === 'Enter' && state.chosen >= 0) {
    copyCommand(state.chosen);
  } else return;
  event.preventDefault();
}

async function startFront() {
  radios(byId('axes'), 'axis', data.axes.map((axis) => [axis.key, axis.title]), state.axis, (key) => { state.axis = key; drawFront(); for (const follow of filtered) follow(); });
  for (const key of COSTS) {
    const label = { size_bytes: 'largest size', flops: 'most compute', latency_ms: 'longest latency', latency_b64_ms: 'longest latency of 64' }[key];
    if (axisOf[key]) addSlider(key, label, (value) => `${number(value / axisOf[key].unit, 3)} ${axisOf[key].short}`);
  }
  addSlider('val_top1', 'least accuracy', (value) => percent(value, 1));
  byId('reset').addEventListener('click', () => {
    for (const slider of sliders) { slider.input.value = slider.free; slider.follow(); }
    applyBudgets();
  });
  showRemaining();
  showDetails();
  await drawFront();
  front.on('plotly_click', (event) => {
    const i = event.points[0].customdata;
    if (i === undefined) return;
    choose(i);
    copyCommand(i);
  });
  front.on('plotly_hover', showTip);
  front.on('plotly_unhover', () => { byId('tip').hidden = true; });
  front.addEventListener('keydown', walk);
  chosenChanged.push(showDetails, drawFront);
  drawings.push(drawFront);
}
