// The chosen trial: its network block by block, and how to export it.
function showDetails() {
  const i = state.chosen, box = byId('details');
  if (i < 0) return box.replaceChildren(element('p', { className: 'soft' }, 'No trial is chosen.'));
  const badge = (text, kind = '') => element('span', { className: `badge ${kind}` }, text);
  const badges = [onFront(i) ? badge('front') : '', i === knee ? badge('knee', 'knee') : '', repeated(i) ? '' : badge('single seed')];
  const lines = networkLines(i).map((line) => element('li', {}, line));
  const text = command(i);
  const exporting = text ? [element('code', { className: 'command' }, text),
    element('button', { type: 'button', id: 'copy', onclick: () => copyCommand(i) }, 'Copy the export command')]
    : [element('p', { className: 'soft' }, 'It left no model.')];
  return box.replaceChildren(element('h3', {}, element('code', {}, T.trial[i]), ...badges), element('p', {}, metricsText(i)),
    onFront(i) ? element('p', { className: 'soft' }, certainty(i)) : '', savings(i),
    element('ul', { className: 'blocks', tabIndex: 0, ariaLabel: 'The network block by block' }, ...lines), ...exporting);
}

// Compare trial i with the uncompressed network.
function savings(i) {
  const base = data.uncompressed.at;
  const parts = ['size_bytes', 'flops'].filter((key) => base[key] > 0 && T[key]?.[i] > 0)
    .map((key) => `${number(base[key] / T[key][i], 2)}x less ${key === 'size_bytes' ? 'size' : 'compute'}`);
  if (base.score !== undefined && T.score[i] !== null) {
    const difference = 100 * (T.score[i] - base.score);
    parts.push(`${difference < 0 ? '−' : '+'}${Math.abs(difference).toFixed(2)} points of ${data.score_name}`);
  }
  return parts.length ? element('p', { className: 'soft' }, `Against the uncompressed network: ${parts.join(', ')}.`) : '';
}
