// Two things move: the sliders, and the colour scheme.
"use strict";
for (const stack of document.querySelectorAll(".stack")) {
  const range = stack.querySelector("input");
  const show = () => {
    stack.style.setProperty("--split", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " % " + range.dataset.before);
  };
  range.addEventListener("input", show);
  show();
}
const root = document.documentElement;
const button = document.getElementById("theme");
const dark = () => root.dataset.theme === "dark";
const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
root.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
name();
