"use strict";
// Boxes by method: what is not ticked is not shown, in tables, pictures and samples.
const boxes = [...document.querySelectorAll("input[data-method]")];
function apply() {
  for (const box of boxes) {
    const name = box.dataset.method;
    for (const part of document.querySelectorAll("[data-of]")) {
      if (part.dataset.of === name) part.hidden = !box.checked;
    }
    const marks = "method-" + [...name].map((ch) => (/[\p{L}\p{N}]/u.test(ch) ? ch : "-")).join("");
    for (const part of document.getElementsByClassName(marks)) part.style.display = box.checked ? "" : "none";
  }
}
for (const box of boxes) box.addEventListener("change", apply);
apply();

// What a mark stands for, beside the pointer, or the mark that has the focus.
const tip = document.getElementById("tip");
function tell(event) {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const x = event.clientX || box.x + box.width / 2;
  const y = event.clientY || box.y;
  tip.style.left = `${Math.max(8, Math.min(x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + tip.offsetHeight + 24 > window.innerHeight ? y - tip.offsetHeight - 8 : y + 14}px`;
}
for (const kind of ["pointerover", "pointerdown", "focusin"]) document.addEventListener(kind, tell);
document.addEventListener("focusout", () => { tip.hidden = true; });

const changes = document.getElementById("changes");
if (changes) {
  changes.addEventListener("change", () => document.getElementById("samples").classList.toggle("unmarked", !changes.checked));
}
