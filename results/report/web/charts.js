// How the search went, and what the knobs do.
const SPANS = { trials: 'finished trials', busy_s: 'time spent', elapsed_s: 'time since the start' };
let span = 'trials';

// Seconds in the unit that people would say.
function duration(most) {
  const [name, unit] = [['seconds', 1], ['minutes', 60], ['hours', 3600], ['days', 86400]].findLast(([, size]) => most >= 3 * size) ?? ['seconds', 1];
  return { name, unit };
}

function drawHistory() {
  const values = data.history[span], timed = span !== 'trials';
  const { name, unit } = timed ? duration(values[values.length - 1] ?? 0) : { name: '', unit: 1 };
  const title = timed ? `${SPANS[span]} (${name})` : SPANS[span];
  byId('history-note').textContent = { trials: '', busy_s: 'Time spent is what all trials took together, failed ones too, however many ran side by side.',
    elapsed_s: 'Time since the first trial began, pauses of the study included.' }[span];
  const start = [0];
  const trace = { type: 'scatter', mode: 'lines', x: start.concat(values.map((value) => value / unit)), y: start.concat(data.history.hypervolume),
    line: { color: color('front'), width: 2, shape: 'hv' }, fill: 'tozeroy', fillcolor: 'rgba(59,130,246,.10)',
    hovertemplate: `%{x:,.4~g} ${timed ? name : 'trials'}: %{y:.4f}<extra></extra>` };
  return Plotly.react(byId('history-plot'), [trace], layout(title, 'hypervolume', { yaxis: { rangemode: 'tozero' }, xaxis: { rangemode: 'tozero' } }), CONFIG);
}

function startHistory() {
  const choices = Object.entries(SPANS).filter(([key]) => key === 'trials' || data.history[key].some((value) => value > 0));
  radios(byId('history-axes'), 'span', choices, span, (key) => { span = key; drawHistory(); });
  drawings.push(drawHistory);
  return drawHistory();
}

function drawImportance() {
  if (!data.insight.importance.length) return byId('importance-plot').replaceChildren('No knob stands out from chance yet.');
  const rows = [...data.insight.importance].sort((a, b) => b.share - a.share).slice(0, 14).reverse();
  const names = rows.map(({ knob }) => plain(knob.length > 30 ? `…${knob.slice(-29)}` : knob));  // its end says which knob
  const trace = { type: 'bar', orientation: 'h', x: rows.map((row) => 100 * row.share), y: rows.map((_, place) => place), customdata: rows.map((row) => plain(row.knob)),
    marker: { color: color('front') }, hovertemplate: '%{customdata}: %{x:.1f} %<extra></extra>' };
  return Plotly.react(byId('importance-plot'), [trace], layout('share of importance (%)', '', { yaxis: { tickvals: rows.map((_, place) => place), ticktext: names, gridcolor: 'rgba(0,0,0,0)' } }), CONFIG);
}

const said = (value) => (value === null || value === undefined ? 'none' : String(value));

function drawEffect() {
  const rows = data.insight.effects.filter((row) => row.knob === byId('effect-knob').value && row.val_top1 !== null);
  const key = ['size_bytes', 'flops'].includes(state.axis) ? state.axis : 'size_bytes', axis = axisOf[key];
  const text = rows.map((row) => `${plain(said(row.value))} (n = ${whole(row.n)})`);
  const trace = { type: 'scatter', mode: 'lines+markers+text', x: rows.map((row) => row[key] / axis.unit), y: rows.map((row) => 100 * row.val_top1),
    text: rows.map((row) => plain(short(said(row.value), 16))), textposition: 'top center', cliponaxis: false, customdata: text, marker: { color: color('front'), size: 9 },
    line: { color: color('other'), width: 1 }, hovertemplate: `%{customdata}<br>%{y:.2f} %, %{x:,.4~g} ${axis.short}<extra></extra>` };
  byId('effect-text').textContent = rows.map((row) => `${said(row.value)}: ${percent(row.val_top1)}, ${cost(key, row[key])} (n = ${row.n})`).join('; ');
  return Plotly.react(byId('effect-plot'), [trace], layout(`mean ${axis.title}`, 'mean validation accuracy (%)', { xaxis: COST_AXIS, margin: { l: 56, r: 24, t: 30, b: 48 } }), CONFIG);
}

function showShared() {
  const rows = [...(data.insight.shared ?? [])].sort((a, b) => (b.front - b.all) - (a.front - a.all)).slice(0, 8);
  if (!rows.length) return;
  const bar = (share, kind) => {
    const fill = element('span', { className: `bar ${kind}`, ariaHidden: 'true' });
    fill.style.width = `${6 * share}rem`;
    return element('td', {}, fill, ` ${Math.round(100 * share)} %`);
  };
  const body = rows.map((row) => element('tr', {}, element('td', {}, `${row.knob} = ${said(row.value)}`), bar(row.front, ''), bar(row.all, 'all')));
  const head = ['value', 'of the front', 'of all finished trials'].map((text) => element('th', { scope: 'col' }, text));
  byId('shared').append(element('h3', {}, 'What the front’s members share'),
    element('div', { className: 'scroll', tabIndex: 0, role: 'region', ariaLabel: 'What the front’s members share' },
      element('table', {}, element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body))));
}

function startInsight() {
  if (!data.insight) return;
  const order = new Map(data.insight.importance.map((row, place) => [row.knob, place]));
  const knobs = [...new Set(data.insight.effects.map((row) => row.knob))].sort((a, b) => (order.get(a) ?? 1e9) - (order.get(b) ?? 1e9));
  byId('effect-knob').append(...knobs.map((knob) => element('option', { value: knob }, short(knob, 60))));
  byId('effect-knob').addEventListener('change', drawEffect);
  drawImportance();
  drawEffect();
  showShared();
  drawings.push(drawImportance, drawEffect);
  filtered.push(drawEffect);
}
