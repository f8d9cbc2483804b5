// Draw the front first, so that readers see it at once, then the rest.
const dark = matchMedia('(prefers-color-scheme: dark)');

function startTheme() {
  const button = byId('theme'), root = document.documentElement;
  const isDark = () => (root.style.colorScheme ? root.style.colorScheme === 'dark' : dark.matches);
  const redraw = () => { button.textContent = isDark() ? 'Light' : 'Dark'; for (const draw of onTheme) draw(); };
  button.hidden = false;
  button.textContent = isDark() ? 'Light' : 'Dark';
  button.addEventListener('click', () => { root.style.colorScheme = isDark() ? 'light' : 'dark'; redraw(); });
  dark.addEventListener('change', redraw);
}

startFront().then(() => {
  document.documentElement.dataset.front = Math.round(performance.now());  // milliseconds from opening to the first picture
  startTheme();
  startTable();
  const rest = () => setTimeout(async () => {
    await startHistory();
    await startKnobs();
    startImportance();
    document.documentElement.dataset.ready = Math.round(performance.now());
  });
  if (document.readyState === 'complete') rest(); else addEventListener('load', rest);
});
