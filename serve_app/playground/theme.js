// Not a module, so that it runs before the first paint: the page never flashes in the wrong theme.
(() => {
  const NAME = "parallel-sdxl-theme";
  const THEMES = ["auto", "light", "dark"];
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // a browser that keeps nothing
    }
  }

  function choose(theme) {
    root.dataset.theme = theme;
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // for this page alone, then
    }
  }

  root.dataset.theme = THEMES.includes(stored()) ? stored() : "auto";

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      const theme = root.dataset.theme;
      const icon = button.querySelector("use");
      icon.setAttribute("href", icon.getAttribute("href").replace(/#.*/, `#${theme}`));
      button.setAttribute("aria-label", `Colours: ${theme}`);
    };
    button.addEventListener("click", () => {
      choose(THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length]);
      show();
    });
    show();
  });
})();
