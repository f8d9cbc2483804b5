// Budgets: which of the finished trials meet them, and the best of those.
const sliders = [];

// Add a budget: a slider from 0 to 400 over the finished trials' range, costs on a log scale, looser to the right.
function addSlider(key, label, text) {
  const atLeast = key === 'score';
  const values = finished.map((i) => T[key][i]).filter((value) => value !== null && (atLeast || value > 0));
  if (!values.length) return;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const at = (share) => (atLeast ? low + share * (high - low) : low * (high / low) ** share);
  const loosest = atLeast ? 0 : 400, tightest = 400 - loosest;
  const input = element('input', { type: 'range', min: 0, max: 400, value: loosest, id: `budget-${key}` });
  const output = element('output', { htmlFor: input.id });
  const follow = () => {
    const free = Number(input.value) === loosest;
    const edge = Number(input.value) === tightest;
    const slack = atLeast ? 1 - 1e-9 : 1 + 1e-9;  // the best trial meets a budget of its own value
    state.limits[key] = free ? null : (edge ? (atLeast ? high : low) : at(input.value / 400)) * slack;
    output.value = free ? 'any' : text(state.limits[key]);
    input.setAttribute('aria-valuetext', output.value);
  };
  input.addEventListener('input', () => { follow(); soon(); });
  follow();
  sliders.push({ input, follow, loosest });
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
    return value !== null && (key === 'score' ? value >= limit : value <= limit);
  }));
  state.page = 0;
  showRemaining();
  drawFront();
  clearTimeout(idle);
  idle = setTimeout(() => { for (const follow of onBudgets) follow(); }, 60);
}

function better(i, j) {
  if (T.score[i] !== T.score[j]) return T.score[i] > T.score[j];
  return T.size_bytes[i] < T.size_bytes[j];
}

function showRemaining() {
  const line = byId('remaining');
  const members = state.visible.filter(onFront).length;
  line.replaceChildren(`${whole(state.visible.length)} of ${plural(finished.length, 'finished trial')} remain, ${whole(members)} of them on the front. `);
  if (!state.visible.length) return;
  const best = state.visible.reduce((a, b) => (better(b, a) ? b : a));
  const button = element('button', { type: 'button', onclick: () => { choose(best); copyCommand(best); } }, 'Choose and copy');
  line.append('Best of them: ', element('strong', { id: 'best' }, T.trial[best]), `, ${metricsText(best)} `, button);
}
