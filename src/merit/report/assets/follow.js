"use strict";
// Only in a served page: asks for news of the run, and replaces the chapters that have changed, and no others.
(() => {
  const EVERY = 3000; // milliseconds
  const PARTS = ".title, .bar nav ol, main > section";
  const key = (part) => part.id || part.className || part.localName;
  // As the server wrote them: what the reader opens, and what plotly draws, must not look like news.
  const written = (page) => new Map([...page.querySelectorAll(PARTS)].map((part) => [key(part), part.outerHTML]));
  const say = (text, lost) => {
    const live = document.getElementById("live"); // the one before may have been replaced
    if (live.textContent !== text) live.textContent = text;
    live.dataset.lost = String(lost);
  };
  let shown = document.querySelector('meta[name="merit-state"]').content;
  let before = written(document);

  // What the reader has done to a chapter: folds opened, views chosen, names looked for.
  const keep = (old, fresh) => {
    const folds = new Map([...old.querySelectorAll("details")].map((fold) => [fold.querySelector("summary").textContent, fold.open]));
    for (const fold of fresh.querySelectorAll("details")) {
      const open = folds.get(fold.querySelector("summary").textContent);
      if (open !== undefined && fold.querySelector("summary").textContent !== "Numbers") fold.open = open;
    }
    for (const figure of fresh.querySelectorAll(".figure")) {
      const other = old.querySelector(`#${CSS.escape(figure.id)}`);
      if (!other) continue;
      figure.querySelector("details").open = other.querySelector("details").open;
      figure.querySelector(".plot").style.minHeight = other.querySelector(".plot").style.minHeight;
      const views = figure.querySelectorAll(".views button").length;
      if (other.dataset.view && Number(other.dataset.view) < views) merit.press(figure, other.dataset.view);
      const [input, typed] = [figure, other].map((one) => one.querySelector(".search input"));
      if (input && typed) { input.value = typed.value; merit.tell(figure); }
    }
  };

  const replace = async (page) => {
    const after = written(page);
    const held = [...document.querySelectorAll("main > section, .figure")].filter((part) => part.getBoundingClientRect().top < 90).pop();
    const at = held?.getBoundingClientRect().top;
    const focus = document.activeElement?.id;
    const drawn = [];
    let last = document.querySelector(".title");
    for (const part of page.querySelectorAll(PARTS)) {
      const old = [...document.querySelectorAll(PARTS)].find((one) => key(one) === key(part));
      let now = old;
      if (!old || before.get(key(part)) !== after.get(key(part))) {
        now = document.importNode(part, true);
        if (old) { keep(old, now); old.replaceWith(now); }
        else last.after(now);
        drawn.push(...now.querySelectorAll(".figure"));
        if (now.localName === "section") merit.watch.observe(now);
      }
      if (now.parentElement.localName === "main") last = now;
    }
    for (const part of document.querySelectorAll("main > section")) if (!after.has(key(part))) part.remove();
    before = after;
    const again = held && document.getElementById(held.id);
    if (again) scrollBy({ top: again.getBoundingClientRect().top - at, behavior: "instant" });
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
    for (const figure of drawn) await merit.draw(figure);
  };

  const look = async () => {
    try {
      const { state } = await (await fetch("state")).json();
      if (state !== shown) {
        const page = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html");
        await replace(page);
        shown = page.querySelector('meta[name="merit-state"]').content;
      }
      setTimeout(look, EVERY);
    } catch {
      say("merit report --serve has ended. This page stays as it is.", true);
      shown = null; // it may come back
      setTimeout(look, 5 * EVERY);
    }
  };

  const start = () => {
    if (["drawn", "unsupported"].includes(document.documentElement.dataset.figures)) setTimeout(look, EVERY);
    else setTimeout(start, 200);
  };
  start();
})();
