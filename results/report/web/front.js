// The chart of the score against a cost, by pointer and by keyboard.
const MANY = 2000;  // most points beyond the front that are drawn one by one
const frontPlot = byId('front-plot');

// Keep one trial for each spot of the chart, because others would lie on top of it.
function thinned(indices, key) {
  if (indices.length <= MANY) return indices;
  const xs = indices.map((i) => Math.log(T[key][i])), ys = indices.map((i) => T.score[i]);
  const range = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const [left, right] = range(xs), [low, high] = range(ys);
  const taken = new Set();
  return indices.filter((_, k) => {
    const column = Math.floor(59 * (xs[k] - left) / (right - left || 1));
    const spot = column + 60 * Math.floor(39 * (ys[k] - low) / (high - low || 1));
    return !taken.has(spot) && taken.add(spot);
  });
}

// Show beside the pointer a trial's network block by block, or a landmark's text.
function showTip(event) {
  const { customdata: i, data: trace, pointIndex, bbox } = event.points[0];
  const tip = byId('tip'), lines = trace.meta ? trace.meta[pointIndex] : [T.trial[i], metricsText(i), certainty(i), ...networkLines(i, 20)];
  tip.replaceChildren(element('strong', {}, lines[0]), ...lines.slice(1).map((line) => element('div', {}, line)));
  tip.hidden = false;
  const box = frontPlot.getBoundingClientRect(), width = tip.offsetWidth, height = tip.offsetHeight;
  const right = box.left + bbox.x1 + 12, left = box.left + bbox.x0 - 12 - width;
  tip.style.left = `${Math.max(4, right + width < innerWidth ? right : left)}px`;
  tip.style.top = `${Math.max(4, Math.min(box.top + bbox.y0 - 10, innerHeight - height - 4))}px`;
}

function points(name, indices, marker) {
  return { type: 'scatter', mode: 'markers', name, x: indices.map((i) => T[state.axis][i] / axisOf[state.axis].unit),
    y: indices.map((i) => 100 * T.score[i]), customdata: indices, marker, hoverinfo: 'none', visible: indices.length ? true : false };
}

// The best trials in the two figures that the chart shows, among those within the budgets.
function staircase(indices) {
  const key = state.axis, steps = [];
  for (const i of [...indices].sort((a, b) => T[key][a] - T[key][b] || T.score[b] - T.score[a])) {
    if (!steps.length || T.score[i] > T.score[steps[steps.length - 1]]) steps.push(i);
  }
  return { ...points('best', steps, {}), mode: 'lines', hoverinfo: 'skip', showlegend: false,
    line: { color: color('front'), width: 1.5, shape: 'hv', dash: 'dot' } };
}

function intervals(indices) {
  const members = indices.filter(repeated).map((i) => memberOf.get(i));
  return { type: 'scatter', mode: 'markers', name: 'mean of seeds, 95 %', hoverinfo: 'skip', visible: members.length > 0,
    x: members.map((member) => T[state.axis][member.index] / axisOf[state.axis].unit), y: members.map((member) => 100 * member.score_mean),
    marker: { symbol: 'line-ew', size: 11, line: { width: 2, color: color('front') } },
    error_y: { type: 'data', symmetric: false, color: color('front'), thickness: 1.6, width: 4,
      array: members.map((member) => 100 * (member.score_high - member.score_mean)),
      arrayminus: members.map((member) => 100 * (member.score_mean - member.score_low)) } };
}

function landmarks(name, all, marker) {
  const shown = all.filter((landmark) => landmark.at[state.axis] !== undefined && landmark.at.score !== undefined);
  return { type: 'scatter', mode: 'markers', name, marker, visible: shown.length > 0, hoverinfo: 'none', meta: shown.map((landmark) => landmark.lines),
    x: shown.map((landmark) => landmark.at[state.axis] / axisOf[state.axis].unit), y: shown.map((landmark) => 100 * landmark.at.score) };
}

function drawFront() {
  const axis = axisOf[state.axis];
  const usable = state.visible.filter((i) => T[state.axis][i] > 0);
  const others = usable.filter((i) => !onFront(i)), members = usable.filter(onFront);
  const drawn = thinned(others, state.axis);
  const anyRepeated = data.front.some((member) => member.seeds > 1), size = members.length > 400 ? 6 : 10;
  const solid = { color: color('front'), size };
  const hollow = { ...solid, symbol: 'circle-open', line: { width: 2 } };
  const chosen = usable.includes(state.chosen) ? [state.chosen] : [];
  const traces = [
    points('other trials', drawn, { color: color('other'), size: 6 }), staircase(usable), intervals(members),
    points('front, single seed', members.filter((i) => !repeated(i)), anyRepeated ? hollow : solid),
    points('front, repeated', members.filter(repeated), solid),
    points('knee', usable.includes(knee) ? [knee] : [], { color: color('mark'), symbol: 'diamond-open', size: 17, line: { width: 2 } }),
    landmarks('uncompressed', [data.uncompressed], { color: color('base'), symbol: 'diamond', size: 13 }),
    landmarks('published elsewhere', data.published, { color: color('published'), symbol: 'x', size: 9 }),
    landmarks('sketch, never trained', data.sketches, { color: color('mark'), symbol: 'triangle-up-open', size: 10 }),
    { ...points('chosen', chosen, { color: color('ink'), symbol: 'circle-open', size: 22, line: { width: 2 } }), hoverinfo: 'skip' },
  ];
  byId('sample').textContent = drawn.length === others.length ? '' : `A sample: ${whole(drawn.length)} of ${plural(others.length, 'other trial')} are drawn, `
    + `one for each spot of the chart, and all ${whole(members.length)} of the front. The budgets, the best and the table count every trial.`;
  frontPlot.setAttribute('aria-label', `${data.score_name} against ${axis.title}: ${plural(members.length, 'trial')} of the front and ${whole(others.length)} others`);
  const style = layout(axis.title, SCORE_AXIS, { showlegend: true, margin: { l: 56, r: 14, t: 60, b: 48 }, xaxis: COST_AXIS });
  if (frontPlot.clientWidth < 560) style.legend = { ...style.legend, entrywidth: 0.48, entrywidthmode: 'fraction', font: { size: 11 } };
  return Plotly.react(frontPlot, traces, { ...style, uirevision: state.axis }, CONFIG);
}

function walk(event) {
  if (event.target !== frontPlot || event.ctrlKey || event.metaKey || event.altKey) return;
  const members = state.visible.filter((i) => onFront(i) && T[state.axis][i] !== null).sort((a, b) => T[state.axis][a] - T[state.axis][b]);
  const at = members.indexOf(state.chosen), last = members.length - 1;
  const steps = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at < 0 ? last : at - 1, ArrowDown: at < 0 ? last : at - 1, Home: 0, End: last };
  if (event.key in steps && members.length) {
    choose(members[Math.min(last, Math.max(0, steps[event.key]))]);
    toast(`${T.trial[state.chosen]}: ${metricsText(state.chosen)}. ${networkLines(state.chosen).join('; ')}`);
  } else if (event.key === 'Enter' && state.chosen >= 0) {
    copyCommand(state.chosen);
  } else return;
  event.preventDefault();
}

async function startFront() {
  radios(byId('axes'), 'axis', data.axes.map((axis) => [axis.key, axis.title]), state.axis, (key) => { state.axis = key; drawFront(); for (const follow of onBudgets) follow(); });
  for (const key of COSTS) {
    const label = { size_bytes: 'largest size', flops: 'most compute', latency_ms: 'longest latency', latency_b64_ms: 'longest latency of 64' }[key];
    if (axisOf[key]) addSlider(key, label, (value) => `${number(value / axisOf[key].unit, 3)} ${axisOf[key].short}`);
  }
  addSlider('score', `least ${data.score_name}`, (value) => percent(value, 1));
  byId('reset').addEventListener('click', () => {
    for (const slider of sliders) { slider.input.value = slider.loosest; slider.follow(); }
    applyBudgets();
  });
  showRemaining();
  showDetails();
  await drawFront();
  frontPlot.on('plotly_click', (event) => {
    const i = event.points[0].customdata;
    if (i === undefined) return;
    choose(i);
    copyCommand(i);
  });
  frontPlot.on('plotly_hover', showTip);
  frontPlot.on('plotly_unhover', () => { byId('tip').hidden = true; });
  frontPlot.addEventListener('keydown', walk);
  onChoice.push(showDetails, drawFront);
  onTheme.push(drawFront);
}
