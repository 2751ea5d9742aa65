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
