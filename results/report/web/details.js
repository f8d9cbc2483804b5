// The chosen trial: its network block by block, and how to export it.
function showDetails() {
  const i = state.chosen, box = byId('details');
  if (i < 0) return box.replaceChildren(element('p', { className: 'soft' }, 'No trial is chosen.'));
  const badge = (text, kind = '') => element('span', { className: `badge ${kind}` }, text);
  const marks = [member[i] ? badge('front') : '', i === knee ? badge('knee', 'knee') : '', repeated(i) ? '' : badge('single seed')];
  const lines = networkLines(i).map((line) => element('li', {}, line));
  const text = command(i);
  const export_ = text ? [element('code', { className: 'command' }, text),
    element('button', { type: 'button', id: 'copy', onclick: () => copyCommand(i) }, 'Copy the export command')]
    : [element('p', { className: 'soft' }, 'It left no model.')];
  return box.replaceChildren(element('h3', {}, element('code', {}, T.trial[i]), ...marks), element('p', {}, figures(i)),
    data.seeds[T.trial[i]] ? element('p', { className: 'soft' }, certainty(i)) : '', saving(i),
    element('ul', { className: 'blocks', tabIndex: 0, ariaLabel: 'The network block by block' }, ...lines), ...export_);
}

function saving(i) {
  const kept = ['size_bytes', 'flops'].filter((key) => data.baseline[key] > 0 && T[key]?.[i] > 0)
    .map((key) => `${number(data.baseline[key] / T[key][i], 2)}x less ${key === 'size_bytes' ? 'size' : 'compute'}`);
  if (data.baseline.val_top1 !== undefined && T.val_top1[i] !== null) {
    const points_ = 100 * (T.val_top1[i] - data.baseline.val_top1);
    kept.push(`${points_ < 0 ? '−' : '+'}${Math.abs(points_).toFixed(2)} points of accuracy`);
  }
  return kept.length ? element('p', { className: 'soft' }, `Against the uncompressed network: ${kept.join(', ')}.`) : '';
}
