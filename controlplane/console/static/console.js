// What the console does beyond plain pages. Everything works without it, except that nothing moves by itself.
"use strict";

// -- times: "3 min ago" stays right ------------------------------------------------------------------------------------

const DISTANCES = [[5, 1, ""], [90, 1, "s"], [5400, 60, "min"], [129600, 3600, "h"], [Infinity, 86400, "days"]];

function distance(seconds) {
  const [, unit, name] = DISTANCES.find(([limit]) => Math.abs(seconds) < limit);
  if (!name) return "now";
  const text = `${Math.round(Math.abs(seconds) / unit)} ${name}`;
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

// This machine's clock may be wrong: the page says what time it was where it was made.
const ahead = Date.now() - Number(document.body.dataset.now);

function refreshTimes() {
  for (const time of document.querySelectorAll("time.ago")) {
    time.textContent = distance((Date.now() - ahead - Date.parse(time.dateTime)) / 1000);
  }
}
setInterval(refreshTimes, 15000);

// -- keys: "/" search, j and k rows, g and a letter, "?" help; off in the account -------------------------------------

const GO = { o: "/console/", m: "/console/messages", s: "/console/send", r: "/console/routes", l: "/console/ledger", a: "/console/alerts" };
let going = 0;

function typing(target) {
  return target.isContentEditable || /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
}

function step(by) {
  const rows = [...document.querySelectorAll("[data-rows] a[data-row]")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(rows.length - 1, Math.max(0, at + by))].focus();
}

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.shortcuts === "off" || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (performance.now() - going < 1500 && GO[event.key]) { location.assign(GO[event.key]); return; }
  going = event.key === "g" ? performance.now() : 0;
  if (event.key === "/") {
    const box = document.querySelector("input[type=search]");
    if (box) { box.focus(); event.preventDefault(); }
  } else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") location.assign("/console/help#keys");
});

// -- copying -----------------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
});

// -- live: data-live="URL" shows what the stream at URL sends, ready HTML; a hidden tab asks for nothing ------------------

// A page that nobody is reading closely (no control in hand, nothing unfolded) may show by itself what is new.
function idle() {
  const at = document.activeElement;
  return (!at || at === document.body || at.id === "main") && !document.querySelector("main details[open]");
}

class Live {
  constructor(place) {
    this.place = place;
    this.failures = 0;
    this.open();
  }

  open() {
    if (this.source || document.hidden || !this.place.isConnected) return;
    this.source = new EventSource(this.place.dataset.live);
    this.source.onmessage = (event) => {
      if (!this.place.isConnected) { this.close(); return; }
      this.failures = 0;
      this.place.innerHTML = event.data;
      refreshTimes();
      if (!window.htmx) return;
      window.htmx.process(this.place);
      const anew = this.place.querySelector("a[data-anew]");
      if (anew && idle()) window.htmx.ajax("GET", anew.href, { target: "#main", select: "#main", swap: "outerHTML", headers: { "X-Idle": "1" } });
    };
    this.source.onerror = () => {
      this.close();
      this.failures += 1;
      setTimeout(() => this.open(), Math.min(60, 2 ** this.failures) * 1000);
      if (this.failures !== 3) return;
      const words = "Not live at the moment; reload to see what is new.";
      if ("keep" in this.place.dataset) this.place.insertAdjacentHTML("afterbegin", `<p class="note">${words}</p>`);
      else this.place.textContent = words;
    };
  }

  close() {
    if (this.source) this.source.close();
    this.source = null;
  }
}

const lives = new Map();

function follow() {
  for (const [place, live] of lives) {
    if (!place.isConnected) { live.close(); lives.delete(place); }
  }
  for (const place of document.querySelectorAll("[data-live]")) {
    if (!lives.has(place)) lives.set(place, new Live(place));
  }
}

follow();
document.addEventListener("visibilitychange", () => lives.forEach((live) => (document.hidden ? live.close() : live.open())));
addEventListener("pagehide", () => lives.forEach((live) => live.close()));
document.addEventListener("htmx:afterSettle", () => { follow(); refreshTimes(); });
