"use strict";
// The page is whole without this file, which keeps it up to date, says when it is not, and draws the plots.
(() => {
  const body = document.body;
  const refreshSeconds = Number(body.dataset.refresh);
  const utcOffsetSeconds = Number(body.dataset.utcOffset);
  const banner = document.getElementById("unreachable");
  const MAX_AUTOMATIC_PLOTS = 2;
  let updatedAt = Date.now();
  let failure = null;

  function sayDuration(seconds) {
    return seconds < 60 ? `${Math.round(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  }

  // A page that no longer hears from its server must not look as if all were well.
  function showFailure() {
    const seconds = (Date.now() - updatedAt) / 1000;
    const stale = failure !== null || seconds > 3 * refreshSeconds + 5;
    banner.hidden = !stale;
    document.querySelector("main").classList.toggle("stale", stale);
    if (stale) {
      banner.textContent = `This page has not been updated for ${sayDuration(seconds)}: ${failure ?? "no answer"}. ` +
        "Everything below is old and proves nothing. Is the ingest host on, is the service running?";
      document.title = "OLD – tiledwriter";
    }
  }

  async function fetchInTime(address) {
    const response = await fetch(address, { signal: AbortSignal.timeout(10000), cache: "no-store" });
    if (!response.ok) throw new Error(`its server answers ${response.status}`);
    return response;
  }

  function replaceRegion(old, fresh) {
    const active = document.activeElement;
    if (old.contains(active) && active.matches("input")) return; // somebody types a token
    const selection = window.getSelection();
    if (!selection.isCollapsed && selection.containsNode(old, true)) return; // somebody copies a command
    const open = [...old.querySelectorAll("details[open]")].map((details) => details.id);
    old.className = fresh.className;
    old.replaceChildren(...fresh.childNodes);
    for (const id of open) {
      const details = document.getElementById(id);
      if (details) details.open = true;
    }
  }

  async function refreshPage() {
    try {
      const text = await (await fetchInTime("/")).text();
      const fresh = new DOMParser().parseFromString(text, "text/html");
      if (fresh.body.dataset.assets !== body.dataset.assets || !sameRegions(fresh)) {
        location.reload();
        return;
      }
      for (const old of document.querySelectorAll("[data-live]")) {
        replaceRegion(old, document.adoptNode(fresh.getElementById(old.id)));
      }
      document.title = fresh.title;
      updatedAt = Date.now();
      failure = null;
    } catch (error) {
      failure = error.name === "TimeoutError" ? "its server does not answer" : error.message.replace("Failed to fetch", "its server cannot be reached");
    }
    showFailure();
  }

  function sameRegions(fresh) {
    const ids = (page) => [...page.querySelectorAll("[data-live]")].map((region) => region.id).join();
    return ids(fresh) === ids(document);
  }

  // Plots.

  function cssColor(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function loadScript(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${body.dataset.assets}/${name}`;
      script.async = false;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${name} cannot be loaded`));
      document.head.append(script);
    });
  }

  class LivePlot {
    constructor(parent, title, series, x, columns, { time = true, xLabel = null, fromZero = false, onClose = null } = {}) {
      this.root = document.createElement("div");
      this.root.className = "plot";
      this.heading = document.createElement("h3");
      this.heading.append(Object.assign(document.createElement("span"), { textContent: title }));
      if (onClose) {
        const close = Object.assign(document.createElement("button"), { textContent: "✕", ariaLabel: "Close this plot" });
        close.addEventListener("click", onClose);
        this.heading.append(close);
      }
      this.canvas = Object.assign(document.createElement("div"), { className: "canvas" });
      this.legend = Object.assign(document.createElement("p"), { className: "legend" });
      this.root.append(this.heading, this.canvas, this.legend);
      parent.append(this.root);
      this.time = time;
      this.source = new Bokeh.ColumnDataSource({ data: this.sourceData(x, columns) });
      // A quantity that cannot be negative is seen from zero; a scalar of a run is seen as close as possible.
      const yRange = fromZero ? { y_range: new Bokeh.DataRange1d({ start: 0 }) } : {};
      const ink = cssColor("soft");
      const figure = Bokeh.Plotting.figure({
        height: 190, sizing_mode: "stretch_width", tools: "", toolbar_location: null, min_border: 4,
        x_axis_type: time ? "datetime" : "linear", output_backend: "canvas",
        background_fill_alpha: 0, border_fill_alpha: 0, outline_line_alpha: 0, ...yRange,
      });
      for (const axis of [figure.xaxis, figure.yaxis]) {
        axis.major_label_text_color = ink;
        axis.axis_label_text_color = ink;
        axis.axis_line_color = cssColor("line");
        axis.major_tick_line_color = cssColor("line");
        axis.minor_tick_line_color = null;
        axis.major_label_text_font_size = "11px";
      }
      for (const grid of [figure.xgrid, figure.ygrid]) grid.grid_line_color = cssColor("line");
      if (xLabel) figure.xaxis.axis_label = xLabel;
      figure.yaxis.formatter = new Bokeh.NumeralTickFormatter({ format: "0[.]0[00]a" });
      series.forEach((name, i) => {
        const color = cssColor(`plot-${1 + i % 4}`);
        const field = { field: `y${i}` };
        figure.line({ field: "x" }, field, { source: this.source, line_color: color, line_width: 2, line_dash: i < 4 ? "solid" : "dashed" });
        figure.scatter({ field: "x" }, field, { source: this.source, size: time ? 0 : 3, line_color: color, fill_color: color });
        const entry = Object.assign(document.createElement("span"), { textContent: name });
        entry.style.setProperty("--swatch", color);
        this.legend.append(entry);
      });
      Bokeh.Plotting.show(figure, this.canvas);
    }

    update(x, columns) {
      this.source.data = this.sourceData(x, columns);
    }

    // BokehJS shows times as UTC; add the offset so that they are those of the ingest host, like all others here.
    sourceData(x, columns) {
      const numbers = (values) => values.map((value) => value === null ? NaN : value);
      const xs = numbers(x).map((value) => this.time ? (value + utcOffsetSeconds) * 1000 : value);
      return Object.fromEntries([["x", xs], ...columns.map((values, i) => [`y${i}`, numbers(values)])]);
    }
  }

  const HISTORY = [
    ["Documents per second", ["received", "to Tiled"], ["documents_per_second", "written_per_second"]],
    ["Documents in the spools of the publishers", ["documents"], ["lag_documents"]],
    ["Duration of requests to Tiled, s", ["mean", "95 % within"], ["latency_mean", "latency_p95"]],
  ];
  const historyPlots = [];

  async function refreshHistory() {
    const { columns } = await (await fetchInTime("/api/history")).json();
    if (columns.time.length < 2) return;
    const parent = document.getElementById("history-plots");
    HISTORY.forEach(([title, names, keys], i) => {
      const values = keys.map((key) => columns[key]);
      if (historyPlots[i]) historyPlots[i].update(columns.time, values);
      else historyPlots[i] = new LivePlot(parent, title, names, columns.time, values, { fromZero: true });
    });
  }

  // Runs whose scalars are drawn, by uid; those closed by hand stay closed.
  const runPlots = new Map();
  const closed = new Set();
  const wanted = new Set();

  function runsOnPage() {
    return [...document.querySelectorAll("[data-plot]")];
  }

  function chooseRuns() {
    const links = runsOnPage();
    const chosen = new Set([...wanted, ...links.filter((link) => "auto" in link.dataset).map((link) => link.dataset.plot).filter((uid) => !closed.has(uid)).slice(0, MAX_AUTOMATIC_PLOTS)]);
    const present = new Set(links.map((link) => link.dataset.plot));
    for (const uid of [...runPlots.keys()]) {
      if (!present.has(uid) || !chosen.has(uid)) removeRun(uid);
    }
    return links.filter((link) => chosen.has(link.dataset.plot));
  }

  function removeRun(uid) {
    for (const plot of runPlots.get(uid)?.plots ?? []) plot.root.remove();
    runPlots.delete(uid);
  }

  async function refreshRun(link) {
    const uid = link.dataset.plot;
    const { streams } = await (await fetchInTime(`/api/runs/${encodeURIComponent(uid)}/scalars`)).json();
    // A run's title changes when its plan becomes known.
    const shape = JSON.stringify([link.dataset.title, ...streams.map((stream) => [stream.name, stream.x.name, stream.series.map((one) => one.name)])]);
    if (runPlots.get(uid)?.shape !== shape) {
      removeRun(uid);
      const parent = document.getElementById("run-plots");
      const onClose = () => {
        closed.add(uid);
        wanted.delete(uid);
        removeRun(uid);
      };
      const plots = streams.filter((stream) => stream.series.length && stream.name !== "baseline").slice(0, 3).map((stream) => {
        const names = stream.series.map((one) => one.units ? `${one.name} (${one.units})` : one.name);
        const time = stream.x.name === "time";
        const plot = new LivePlot(parent, `${link.dataset.title} · ${stream.name}`, names, stream.x.values, stream.series.map((one) => one.values), { time, xLabel: time ? null : stream.x.name, onClose });
        return Object.assign(plot, { stream: stream.name });
      });
      runPlots.set(uid, { shape, plots });
    }
    for (const plot of runPlots.get(uid).plots) {
      const stream = streams.find((one) => one.name === plot.stream);
      plot.update(stream.x.values, stream.series.map((one) => one.values));
    }
  }

  async function refreshRuns() {
    for (const link of chooseRuns()) {
      try {
        await refreshRun(link);
      } catch (error) {
        console.warn(`Run ${link.dataset.plot} cannot be plotted: ${error.message}`);
      }
    }
    document.getElementById("plots").hidden = ![...runPlots.values()].some((run) => run.plots.length);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-plot]");
    if (link) {
      wanted.add(link.dataset.plot);
      closed.delete(link.dataset.plot);
      refreshRuns();
    }
  });

  async function refreshPlots() {
    if (!document.getElementById("history-plots")) return;
    await refreshHistory();
    await refreshRuns();
  }

  async function keepFresh() {
    let plotting = false;
    Promise.all([loadScript("bokeh.min.js"), loadScript("bokeh-api.min.js")]).then(() => {
      Bokeh.set_log_level?.("error");
      plotting = true;
      return refreshPlots();
    }).catch((error) => console.warn(error.message));
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, refreshSeconds * 1000));
      if (document.hidden) continue; // a browser in a pocket asks nothing
      await refreshPage();
      if (plotting) await refreshPlots().catch((error) => console.warn(error.message));
    }
  }

  setInterval(showFailure, 1000);
  document.addEventListener("visibilitychange", () => document.hidden || refreshPage());
  keepFresh();
})();
