// "12 new": the stream says when the newest messages were accepted, this counts those that came after the page was made. Rows stay where they are.
"use strict";

for (const place of document.querySelectorAll("[data-new]")) {
  const since = Date.parse(place.dataset.since) || Number(document.body.dataset.now);
  new MutationObserver(() => {
    const link = place.querySelector("[data-times]");
    if (!link || link.textContent) return;
    const times = link.dataset.times.split(" ").filter(Boolean).map(Number);
    const fresh = times.filter((at) => at > since).length;
    if (!fresh) return;
    link.textContent = `${fresh === 100 ? "100 or more" : fresh} new`;
    link.classList.remove("hidden");
  }).observe(place, { childList: true });
}
