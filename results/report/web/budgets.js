// Budgets: what of the finished trials they leave, and the best of that.
const sliders = [];

// Each budget is a slider from 0 to 400 along the finished trials' range; costs on a log scale, looser to the right.
function addSlider(key, label, text) {
  const values = finished.map((i) => T[key][i]).filter((value) => value !== null && (key === 'val_top1' || value > 0));
  if (!values.length) return;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const minimum = key === 'val_top1';
  const at = (share) => (minimum ? low + share * (high - low) : low * (high / low) ** share);
  const input = element('input', { type: 'range', min: 0, max: 400, value: minimum ? 0 : 400, id: `budget-${key}` });
  const output = element('output', { htmlFor: input.id });
  const follow = () => {
    const free = Number(input.value) === (minimum ? 0 : 400);
    const edge = Number(input.value) === (minimum ? 400 : 0);
    const slack = minimum ? 1 - 1e-9 : 1 + 1e-9;  // the last trial stays within its own figure
    state.limits[key] = free ? null : (edge ? (minimum ? high : low) : at(input.value / 400)) * slack;
    output.value = free ? 'any' : text(state.limits[key]);
    input.setAttribute('aria-valuetext', output.value);
  };
  input.addEventListener('input', () => { follow(); soon(); });
  follow();
  sliders.push({ input, follow, free: minimum ? 0 : 400 });
  byId('reset').before(element('label', { className: 'slider' }, element('span', {}, `${label}: `, output), input));
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; applyBudgets(); });
}

let idle = 0;
function applyBudgets() {
  const limits = Object.entries(state.limits).filter(([, limit]) => limit !== null);
  state.budgeted = limits.length > 0;
  state.visible = finished.filter((i) => limits.every(([key, limit]) => {
    const value = T[key][i];
    return value !== null && (key === 'val_top1' ? value >= limit : value <= limit);
  }));
  state.page = 0;
  showRemaining();
  drawFront();
  clearTimeout(idle);
  idle = setTimeout(() => { for (const follow of filtered) follow(); }, 60);
}

function better(i, j) {
  if (T.val_top1[i] !== T.val_top1[j]) return T.val_top1[i] > T.val_top1[j];
  return T.size_bytes[i] < T.size_bytes[j];
}

function showRemaining() {
  const line = byId('remaining');
  const members = state.visible.filter((i) => member[i]).length;
  line.replaceChildren(`${whole(state.visible.length)} of ${plural(finished.length, 'finished trial')} remain, ${whole(members)} of them on the front. `);
  if (!state.visible.length) return;
  const best = state.visible.reduce((a, b) => (better(b, a) ? b : a));
  const show = element('button', { type: 'button', onclick: () => { choose(best); copyCommand(best); } }, 'Choose and copy');
  line.append('Best of them: ', element('strong', { id: 'best' }, T.trial[best]), `, ${figures(best)} `, show);
}
