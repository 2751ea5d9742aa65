// One item at a time. What is shown comes from the server, already sanitised; an answer names its ticket, so that one
// sent twice, after a reload or from two windows, counts once.
"use strict";

const $ = (id) => document.getElementById(id);
let state = null;
let plain = false;
let busy = false;
const STALE = {
  "api/answer": "That one was answered already, perhaps in another window. It counts once.",
  "api/undo": "That one is not your last answer any more.",
};

async function ask(path, body) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    const options = body && {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ annotator: state.annotator, ...body }),
    };
    const response = await fetch(path, options);
    const text = await response.text();
    let answer = {};
    try { answer = JSON.parse(text); } catch { answer = { error: text }; }
    if (!response.ok) {
      notice(answer.error || `Not saved: the server answers ${response.status}.`);
      if (!state) enter();
      return;
    }
    notice(answer.kept ? "" : STALE[path]);
    show(answer);
  } catch {
    notice("The server does not answer, and this was not saved. Try again when it runs.");
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

function enter() {
  $("work").hidden = true;
  $("enter").hidden = false;
  $("name").focus();
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function words(content) {
  const made = element("div", plain ? "text plain" : "text");
  if (plain) made.textContent = content.text;
  else made.innerHTML = content.html;
  return made;
}

function show(next) {
  const another = !state || state.ticket !== next.ticket;
  state = next;
  const total = state.answered + state.left;
  $("who").textContent = state.annotator;
  $("count").textContent = `${state.answered} of ${total}`;
  $("bar").style.width = `${total ? (100 * state.answered) / total : 0}%`;
  $("undo").disabled = !state.last;
  if (state.guidelines && $("guidelines").hidden) {
    $("guidelines").lastElementChild.innerHTML = state.guidelines;
    $("guidelines").hidden = false;
  }
  if (another) {
    $("reason").value = state.reason || "";
    $("flag").checked = Boolean(state.flag);
    window.scrollTo(0, 0);
  }
  draw();
}

function draw() {
  const open = Boolean(state.ticket);
  $("tools").classList.toggle("over", !open);
  $("done").hidden = open;
  const thanks = state.answered ? ` Thank you for ${state.answered} ${state.answered === 1 ? "answer" : "answers"}.` : "";
  $("done").textContent = open ? "" : `No more items for you now.${thanks}`;
  $("prompt").replaceChildren(...(state.prompt || []).map(turn));
  $("sides").replaceChildren(...(state.sides || []).map(side));
  $("sides").dataset.count = (state.sides || []).length;
  const choices = (state.sides || []).map((_, place) => choice(place, `${place + 1}`, `${place + 1}`));
  $("choices").replaceChildren(...(open ? [...choices, choice("tie", "Tie", "t")] : []));
}

function turn(message) {
  const made = element("div", "turn");
  if (message.role) made.append(element("div", "role", message.role));
  made.append(words(message));
  return made;
}

function side(content, place) {
  const made = element("article", "answer");
  made.append(element("div", "role", `${place + 1}`), words(content));
  return made;
}

function choice(value, label, key) {
  const made = element("button", "main", value === "tie" ? label : `${label} is best`);
  if (state.sides.length === 2 && value !== "tie") made.textContent = `${label} is better`;
  made.dataset.choice = value;
  made.append(" ", element("kbd", "", key));
  return made;
}

function choose(value) {
  if (!state || !state.ticket) return;
  ask("api/answer", { ticket: state.ticket, choice: value, reason: $("reason").value, flag: $("flag").checked });
}

function undo() {
  if (state && state.last) ask("api/undo", { ticket: state.last });
}

function togglePlain() {
  plain = !plain;
  $("plain").setAttribute("aria-pressed", plain);
  draw();
}

function toggleHelp() {
  $("help").hidden = !$("help").hidden;
  $("keys").setAttribute("aria-expanded", !$("help").hidden);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-choice]");
  if (button) choose(/^\d+$/.test(button.dataset.choice) ? Number(button.dataset.choice) : button.dataset.choice);
});
$("undo").addEventListener("click", undo);
$("plain").addEventListener("click", togglePlain);
$("keys").addEventListener("click", toggleHelp);

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target === $("reason")) {
    if (event.key === "Enter" || event.key === "Escape") $("reason").blur();
    return;
  }
  const key = event.key.toLowerCase();
  if (/^[1-9]$/.test(key)) {
    if (Number(key) <= (state.sides || []).length) choose(Number(key) - 1);
  } else if (key === "t") choose("tie");
  else if (key === "s") choose("skip");
  else if (key === "u") undo();
  else if (key === "f") $("flag").checked = !$("flag").checked;
  else if (key === "m") togglePlain();
  else if (key === "g") $("guidelines").open = !$("guidelines").open;
  else if (key === "?") toggleHelp();
  else if (key === "r") { event.preventDefault(); $("reason").focus(); }
});

const annotator = new URLSearchParams(location.search).get("annotator");
if (annotator) {
  $("work").hidden = false;
  ask(`api/state?annotator=${encodeURIComponent(annotator)}`);
} else {
  enter();
}
