// How the search went, and what the knobs do.
const SPANS = { trials: 'finished trials', busy_s: 'time spent', elapsed_s: 'time since the start' };
let span = 'trials';

// Return the largest unit in which this many seconds are at least three.
function timeUnit(seconds) {
  const [name, unit] = [['seconds', 1], ['minutes', 60], ['hours', 3600], ['days', 86400]].findLast(([, size]) => seconds >= 3 * size) ?? ['seconds', 1];
  return { name, unit };
}

function drawHistory() {
  const values = data.history[span], timed = span !== 'trials';
  const { name, unit } = timed ? timeUnit(values[values.length - 1] ?? 0) : { name: '', unit: 1 };
  const title = timed ? `${SPANS[span]} (${name})` : SPANS[span];
  byId('history-note').textContent = { trials: '', busy_s: 'Time spent is the sum over all trials, failed ones too, however many ran side by side.',
    elapsed_s: 'Time since the first trial began, with the study’s pauses.' }[span];
  const trace = { type: 'scatter', mode: 'lines', x: [0, ...values.map((value) => value / unit)], y: [0, ...data.history.hypervolume],
    line: { color: color('front'), width: 2, shape: 'hv' }, fill: 'tozeroy', fillcolor: 'rgba(59,130,246,.10)',
    hovertemplate: `%{x:,.4~g} ${timed ? name : 'trials'}: %{y:.4f}<extra></extra>` };
  return Plotly.react(byId('history-plot'), [trace], layout(title, 'hypervolume', { yaxis: { rangemode: 'tozero' }, xaxis: { rangemode: 'tozero' } }), CONFIG);
}

function startHistory() {
  const choices = Object.entries(SPANS).filter(([key]) => key === 'trials' || data.history[key].some((value) => value > 0));
  radios(byId('history-axes'), 'span', choices, span, (key) => { span = key; drawHistory(); });
  onTheme.push(drawHistory);
  return drawHistory();
}

function drawImportance() {
  if (!data.importance.shares.length) return byId('importance-plot').replaceChildren('No knob stands out from chance yet.');
  const bars = data.importance.shares.slice(0, 14).reverse();
  const names = bars.map(({ knob }) => plain(knob.length > 30 ? `…${knob.slice(-29)}` : knob));  // the end of a name tells knobs apart
  const trace = { type: 'bar', orientation: 'h', x: bars.map((important) => 100 * important.share), y: bars.map((_, index) => index), customdata: bars.map((important) => plain(important.knob)),
    marker: { color: color('front') }, hovertemplate: '%{customdata}: %{x:.1f} %<extra></extra>' };
  return Plotly.react(byId('importance-plot'), [trace], layout('share of importance (%)', '', { yaxis: { tickvals: bars.map((_, index) => index), ticktext: names, gridcolor: 'rgba(0,0,0,0)' } }), CONFIG);
}

const valueText = (value) => (value === null || value === undefined ? 'none' : String(value));

function drawEffect() {
  const effects = data.importance.effects.filter((effect) => effect.knob === byId('effect-knob').value);
  const key = ['size_bytes', 'flops'].includes(state.axis) ? state.axis : 'size_bytes', axis = axisOf[key];
  const text = effects.map((effect) => `${plain(valueText(effect.value))} (n = ${whole(effect.n)})`);
  const trace = { type: 'scatter', mode: 'lines+markers+text', x: effects.map((effect) => effect[key] / axis.unit), y: effects.map((effect) => 100 * effect.score),
    text: effects.map((effect) => plain(short(valueText(effect.value), 16))), textposition: 'top center', cliponaxis: false, customdata: text, marker: { color: color('front'), size: 9 },
    line: { color: color('other'), width: 1 }, hovertemplate: `%{customdata}<br>%{y:.2f} %, %{x:,.4~g} ${axis.short}<extra></extra>` };
  byId('effect-text').textContent = effects.map((effect) => `${valueText(effect.value)}: ${percent(effect.score)}, ${costText(key, effect[key])} (n = ${effect.n})`).join('; ');
  return Plotly.react(byId('effect-plot'), [trace], layout(`mean ${axis.title}`, `mean ${SCORE_AXIS}`, { xaxis: COST_AXIS, margin: { l: 56, r: 24, t: 30, b: 48 } }), CONFIG);
}

// Show what the layers of each stage add up to, where layers are blocks of their own.
function showStages() {
  const stages = data.importance.stages.filter((part) => part.share > 0);
  if (!stages.some((part) => part.blocks.length > 1)) return;
  const text = (share) => `${(100 * share).toFixed(1)} %`;
  const body = stages.map((part) => element('tr', {}, element('td', {}, part.stage), element('td', {}, text(part.share)),
    element('td', {}, part.blocks.filter((layer) => layer.share > 0).map((layer) => `${layer.block} ${text(layer.share)}`).join(', '))));
  const head = ['stage', 'importance', 'its layers'].map((name) => element('th', { scope: 'col' }, name));
  byId('stages').append(element('h3', {}, 'Importance by stage'),
    element('div', { className: 'scroll', tabIndex: 0, role: 'region', ariaLabel: 'Importance by stage' },
      element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
}

function showShared() {
  const values = [...data.importance.shared].sort((a, b) => (b.front - b.all) - (a.front - a.all)).slice(0, 8);
  if (!values.length) return;
  const bar = (share, kind) => {
    const fill = element('span', { className: `bar ${kind}`, ariaHidden: 'true' });
    fill.style.width = `${6 * share}rem`;
    return element('td', {}, fill, ` ${Math.round(100 * share)} %`);
  };
  const body = values.map((shared) => element('tr', {}, element('td', {}, `${shared.knob} = ${valueText(shared.value)}`), bar(shared.front, ''), bar(shared.all, 'all')));
  const head = ['value', 'of the front', 'of all finished trials'].map((text) => element('th', { scope: 'col' }, text));
  byId('shared').append(element('h3', {}, 'What the front’s members share'),
    element('div', { className: 'scroll', tabIndex: 0, role: 'region', ariaLabel: 'What the front’s members share' },
      element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
}

function startImportance() {
  if (!data.importance.effects.length) return;
  const order = new Map(data.importance.shares.map((important, index) => [important.knob, index]));
  const knobs = [...new Set(data.importance.effects.map((effect) => effect.knob))].sort((a, b) => (order.get(a) ?? 1e9) - (order.get(b) ?? 1e9));
  byId('effect-knob').append(...knobs.map((name) => element('option', { value: name }, short(name, 60))));
  byId('effect-knob').addEventListener('change', drawEffect);
  drawImportance();
  drawEffect();
  showStages();
  showShared();
  onTheme.push(drawImportance, drawEffect);
  onBudgets.push(drawEffect);
}
