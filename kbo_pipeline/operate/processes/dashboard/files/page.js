// Refreshes the page every 2 s, in place: only what differs is touched, so that focus and selection stay.
"use strict";

const SECONDS = 2;
const MESSAGE_SECONDS = 30;
let answeredAt = new Date();
let pressed = null; // the id of the button whose answer is awaited
let messageUntil = 0;

function copyAttributes(from, to) {
  for (const { name } of [...to.attributes]) if (!from.hasAttribute(name)) to.removeAttribute(name);
  for (const { name, value } of from.attributes) if (to.getAttribute(name) !== value) to.setAttribute(name, value);
}

function isSame(a, b) {
  return a && b && a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.id === b.id;
}

// Makes `to` what `from` is.
function update(from, to) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (to.nodeValue !== from.nodeValue) to.nodeValue = from.nodeValue;
    return;
  }
  copyAttributes(from, to);
  let old = to.firstChild;
  for (const wanted of [...from.childNodes]) {
    if (wanted.id) {
      let found = old;
      while (found && !isSame(found, wanted)) found = found.nextSibling;
      while (found && old !== found) { const next = old.nextSibling; old.remove(); old = next; }
    }
    if (isSame(old, wanted)) {
      update(wanted, old);
      old = old.nextSibling;
    } else {
      to.insertBefore(document.importNode(wanted, true), old);
    }
  }
  while (old) { const next = old.nextSibling; old.remove(); old = next; }
}

function show(text, keepsMessage) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  if (!fresh.querySelector("main")) throw new Error("no page");
  if (keepsMessage) {
    const [now, old] = [fresh.getElementById("message"), document.getElementById("message")];
    if (!now.textContent) { now.innerHTML = old.innerHTML; now.className = old.className; }
  }
  document.title = fresh.title;
  update(fresh.querySelector("main"), document.querySelector("main"));
  update(fresh.querySelector("footer"), document.querySelector("footer"));
  answeredAt = new Date();
}

function isSilent() {
  document.getElementById("since").textContent = answeredAt.toLocaleTimeString();
  document.getElementById("silent").hidden = false;
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/kbo", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.text(), Date.now() < messageUntil);
    if (pressed) document.getElementById(pressed)?.setAttribute("aria-disabled", "true");
  } catch {
    isSilent();
  }
}

// A button works without this too; with it, the page stays where it is and keeps refreshing.
document.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (pressed) return;
  const button = event.target.querySelector("button");
  const message = document.getElementById("message");
  pressed = button.id;
  button.setAttribute("aria-disabled", "true");
  message.className = "";
  message.textContent = `${button.textContent} …`;
  messageUntil = Infinity;
  try {
    const answer = await fetch(event.target.action, { method: "POST" });
    const text = await answer.text();
    pressed = null;
    if (answer.headers.get("content-type").startsWith("text/html")) {
      show(text, false);
    } else {
      message.className = "refused";
      message.textContent = text;
    }
  } catch {
    isSilent();
  }
  pressed = null;
  messageUntil = Date.now() + MESSAGE_SECONDS * 1000;
});

setInterval(refresh, SECONDS * 1000);
document.addEventListener("visibilitychange", refresh);
