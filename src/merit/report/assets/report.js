"use strict";
(() => {
  const FOUND = 5; // datasets framed at most
  const FOLD = 36; // characters of an axis title on a phone's line
  const NARROW = 560; // CSS pixels of a plot, below which its phone layout is used
  const root = document.documentElement;
  const figures = () => [...document.querySelectorAll(".figure")];
  const system = matchMedia("(prefers-color-scheme: dark)");

  // Storage may be forbidden for files; the choice then lasts as long as the page.
  const stored = () => { try { return localStorage.getItem("merit-theme"); } catch { return null; } };
  const store = (theme) => { try { localStorage.setItem("merit-theme", theme); } catch { /* see above */ } };
  if (stored()) root.dataset.theme = stored();

  // A figure names its colours as CSS variables: "--accent" becomes the value that the theme gives it.
  const resolve = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    }
    return value;
  };

  const put = (target, dotted, value) => {
    const keys = dotted.split(".");
    const last = keys.pop();
    let at = target;
    for (const key of keys) at = at[key] ??= {};
    at[last] = value;
  };

  // A title longer than a phone is wide goes on in a second line: with what stands in brackets, or where it must.
  const folded = (text) => text?.replace(new RegExp(`^(?=.{${FOLD}})([^<]+(?=  \\()|[^<]{1,${FOLD - 1}}) +`), "$1<br>");

  const themed = (layout, style, narrow) => {
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = (own = {}) => ({
      gridcolor: colour("--line"), zerolinecolor: colour("--faint"), linecolor: colour("--line"), tickcolor: colour("--line"),
      automargin: true, zeroline: false, fixedrange: narrow, ...own,
      title: { standoff: 8, ...own.title, ...(narrow && { text: folded(own.title?.text) }), font: { size: 12, color: colour("--muted") } },
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: narrow ? false : "zoom",
      ...layout,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
      margin: { l: 8, r: 12, t: 12, b: 8, ...layout.margin },
      hoverlabel: { bgcolor: colour("--surface"), bordercolor: colour("--faint"), font: { size: 12, color: colour("--ink") }, align: "left" },
      legend: { font: { size: 12 }, ...layout.legend },
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    };
  };

  // Datasets whose name contains what is looked for, as positions in the search's names; one that equals it is alone.
  const found = (figure, { search }) => {
    const wanted = figure.querySelector(".search input").value.trim().toLowerCase();
    if (!wanted) return [];
    const names = search.names.map((name) => name.toLowerCase());
    if (names.includes(wanted)) return [names.indexOf(wanted)];
    return [...names.keys()].filter((i) => names[i].includes(wanted)).slice(0, FOUND);
  };

  const frames = (positions, view, search) => positions.flatMap((position) => {
    const at = view?.order.length ? view.order.indexOf(position) : position;
    const last = search.names.length - 0.5;
    const frame = { type: "rect", line: { color: "--ink", width: 2 } };
    return [{ ...frame, x0: -0.5, x1: last, y0: at - 0.5, y1: at + 0.5 }, { ...frame, x0: at - 0.5, x1: at + 0.5, y0: -0.5, y1: last }];
  });

  // Says in words what the framed rows show: whom each dataset fights, and whom it agrees with.
  const tell = (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const { names, groups, view } = spec.search;
    const cosines = spec.views.length ? spec.views[view].restyle.z[0] : spec.data[0].z;
    const number = (value) => value.toFixed(2).replace("-", "−");
    const lines = found(figure, spec).map((i) => {
      const others = [...names.keys()].filter((j) => j !== i && cosines[i][j] !== null).sort((a, b) => cosines[i][a] - cosines[i][b]);
      const list = (some) => some.map((j) => `${names[j]} (${number(cosines[i][j])})`).join(", ");
      return `${names[i]}${groups[i] ? `, ${groups[i]}` : ""}. Lowest cosines: ${list(others.slice(0, 3))}. `
        + `Highest: ${list(others.slice(-3).reverse())}.`;
    });
    if (!lines.length && figure.querySelector(".search input").value.trim()) lines.push("No dataset has such a name.");
    figure.querySelector(".found").replaceChildren(...lines.map((line) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = line;
      return paragraph;
    }));
  };

  const draw = async (figure) => {
    const plot = figure.querySelector(".plot");
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const style = getComputedStyle(root);
    const narrow = plot.clientWidth < NARROW;
    const view = spec.views[Number(figure.dataset.view ?? 0)];
    if (view) for (const [key, value] of Object.entries(view.restyle)) put(spec.data[0], key, value[0]);
    if (narrow) for (const [key, value] of Object.entries(spec.narrow)) put(spec.layout, key, value);
    if (view) for (const [key, value] of Object.entries(view.relayout)) put(spec.layout, key, value);
    spec.data = spec.data.filter((trace) => trace.meta?.view === undefined || trace.meta.view === Number(figure.dataset.view ?? 0));
    if (spec.search) spec.layout.shapes = [...spec.layout.shapes, ...frames(found(figure, spec), view, spec.search)];
    const layout = themed(resolve(spec.layout, style), style, narrow);
    plot.style.minHeight = `${layout.height}px`;
    const config = { displayModeBar: false, responsive: false, doubleClick: "reset", showTips: false };
    await Plotly.react(plot, resolve(spec.data, style), layout, config);
    figure.dataset.narrow = String(narrow);
    figure.dataset.drawn = "true";
  };

  const drawAll = async () => {
    for (const figure of figures()) {
      await draw(figure);
      await new Promise((done) => setTimeout(done)); // lets the page scroll between two figures
    }
    root.dataset.figures = "drawn";
  };

  const loadPlotly = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly-bundle").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const save = (name, url) => {
    const link = document.createElement("a");
    link.download = name;
    link.href = url;
    link.click();
  };

  const csv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    const text = cell.textContent.replaceAll("−", "-");
    // Spreadsheets run what begins like a formula; only plain numbers may begin with a sign.
    const formula = /^[=+\-@\t\r]/.test(text) && !/^[+-]?[\d.,]+( ± [\d.]+)?%?$/.test(text);
    return `"${(formula ? "'" : "") + text.replaceAll('"', '""')}"`;
  }).join(",")).join("\r\n");

  const press = (figure, view) => {
    figure.dataset.view = view;
    for (const button of figure.querySelectorAll(".views button")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
    }
  };

  document.addEventListener("input", ({ target }) => {
    const figure = target.closest(".search") && target.closest(".figure");
    if (!figure) return;
    tell(figure);
    if (figure.dataset.drawn) draw(figure);
  });

  document.addEventListener("click", async ({ target }) => {
    const button = target.closest(".figure button");
    if (!button) return;
    const figure = button.closest(".figure");
    const name = figure.id.replace("fig-", "");
    if (button.dataset.view) {
      press(figure, button.dataset.view);
      await draw(figure);
    } else if (button.dataset.save === "csv") {
      const url = URL.createObjectURL(new Blob([csv(figure.querySelector("table"))], { type: "text/csv" }));
      save(`${name}.csv`, url);
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    } else if (button.dataset.save === "png") {
      const plot = figure.querySelector(".plot");
      const size = { format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight };
      save(`${name}.png`, await Plotly.toImage({ ...plot, data: plot.data,
        layout: { ...plot.layout, paper_bgcolor: getComputedStyle(root).getPropertyValue("--surface").trim() } }, size));
    }
  });

  const redraw = () => { if (root.dataset.figures === "drawn") drawAll(); };
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    store(root.dataset.theme);
    redraw();
  });
  system.addEventListener("change", () => { if (!root.dataset.theme) redraw(); });

  let width = innerWidth;
  let waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar changes the height alone
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });

  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of document.querySelectorAll(".bar nav a")) {
        if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));

  // A page that follows a run replaces chapters, and has their figures drawn.
  window.merit = { draw, press, tell, watch };

  if (figures().length === 0) root.dataset.figures = "drawn";
  else if (!("DecompressionStream" in window)) root.dataset.figures = "unsupported"; // every figure has its table
  else loadPlotly().then(drawAll);
})();
