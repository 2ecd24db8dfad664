// Draws the report: "page" holds what is needed at once, "chunk-0", "chunk-1", ... the series, unpacked when one of them is looked
// at.
Page.start(async () => {
  "use strict";

  const { $, unpack, element, plain, format, percent, signedPercent, stamp, shade, theme, draw, redraws, times, sortable } = Page;
  const ROW = 30; // height of a row of the series list in pixels, as in page.css
  const page = await unpack("page");
  const models = page.models;

  // ---- Series ----

  const chunks = new Map();

  async function load(index) {
    const number = Math.floor(index / page.chunk);
    if (!chunks.has(number)) chunks.set(number, unpack(`chunk-${number}`));
    return (await chunks.get(number))[index % page.chunk];
  }

  // What the reader switched on or off; until then every line is drawn, and the intervals of the best model.
  const switched = { actual: new Map(), line: new Map(), band: new Map(), others: new Map() };
  const shown = (kind, i, best) => switched[kind].get(i) ?? (kind !== "band" || i === best);
  const orders = {
    name: { label: "By name" },
    score: { label: `Worst ${page.metric}`, values: page.score },
    uplift: { label: "Largest uplift", values: page.uplift },
    gain: { label: "Largest gain", values: page.gain },
  };
  let matches = page.ids.map((_, i) => i);
  let chosen = -1; // index into page.ids
  let view = 0; // counts selections: a slow load must not draw over a later one

  function arrange() {
    const wanted = $("search").value.trim().toLowerCase();
    matches = page.ids.map((_, i) => i).filter((i) => page.ids[i].toLowerCase().includes(wanted));
    const values = orders[$("order").value].values;
    if (values) {
      const at = (i) => (values[i] === null ? -Infinity : values[i]);
      matches.sort((a, b) => (at(b) === at(a) ? a - b : at(b) - at(a)));
    }
    const all = page.ids.length;
    const [part, whole] = [matches.length, all].map((count) => count.toLocaleString("en-US"));
    $("count").textContent = `${part === whole ? whole : `${part} of ${whole}`} series`;
    $("noted").textContent = noted().values ? `The number beside a series is its ${noted().name}. ` : "";
    $("rows").style.height = `${matches.length * ROW}px`;
    fill();
    buttons();
  }

  // The number beside each series: what it is sorted by, else its score.
  function noted() {
    if ($("order").value === "uplift") return { values: page.uplift, write: signedPercent, name: "uplift by fine-tuning, on the report windows" };
    if ($("order").value === "gain") return { values: page.gain, write: signedPercent, name: "gain by fine-tuning, at the gate" };
    return { values: page.score, write: (value) => format(value, 3, true), name: `${page.metric} (${page.scored})` };
  }

  // Only the rows in sight are in the page, so the length of the list costs nothing.
  function fill() {
    const list = $("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(matches.length, first + Math.ceil(list.clientHeight / ROW) + 10);
    const { values, write } = noted();
    $("rows").replaceChildren(
      ...matches.slice(first, last).map((index, n) => {
        const item = element("div", undefined, { className: "item", title: page.ids[index] });
        item.setAttribute("role", "option");
        item.setAttribute("aria-selected", String(index === chosen));
        item.style.top = `${(first + n) * ROW}px`;
        item.append(element("span", page.ids[index]));
        if (values && values[index] !== null) item.append(element("small", write(values[index])));
        item.addEventListener("click", () => select(index));
        return item;
      }),
    );
  }

  function reveal() {
    const list = $("list");
    const top = matches.indexOf(chosen) * ROW;
    if (top < 0) return;
    if (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  }

  function buttons() {
    const at = matches.indexOf(chosen);
    $("previous").disabled = matches.length === 0 || at === 0;
    $("next").disabled = matches.length === 0 || at === matches.length - 1;
  }

  function move(by) {
    if (matches.length === 0) return;
    const at = matches.indexOf(chosen);
    const to = at < 0 ? 0 : Math.min(matches.length - 1, Math.max(0, at + by));
    if (matches[to] !== chosen) select(matches[to]);
  }

  async function select(index, cutoff) {
    const mine = ++view;
    chosen = index;
    reveal();
    fill();
    buttons();
    const series = await load(index);
    if (mine !== view) return;
    $("name").textContent = page.ids[index];
    $("badge").textContent = page.verdicts ? page.verdicts[index] : "";
    $("badge").className = page.tuned && page.tuned[index] ? "tuned" : "";
    const cutoffs = [...new Set(series.f.map((forecast) => forecast.c))].sort((a, b) => b - a);
    $("cutoff").replaceChildren(...cutoffs.map((time) => element("option", `Cutoff ${stamp(time)}`, { value: time })));
    $("cutoff").hidden = cutoffs.length < 2;
    if (cutoffs.includes(cutoff)) $("cutoff").value = cutoff;
    await show(series);
    remember();
  }

  // The address names what is on screen, so that it can be sent to someone. Not everywhere may it be written.
  function remember() {
    const parts = new URLSearchParams({ series: page.ids[chosen] });
    if (!$("cutoff").hidden) parts.set("cutoff", $("cutoff").value);
    try {
      history.replaceState(null, "", `#${parts}`);
    } catch {
      // Inside another page's frame.
    }
  }

  async function show(series) {
    const cutoff = Number($("cutoff").value);
    const actualTimes = times(series.t);
    const forecasts = models.map((_, i) => series.f.find((forecast) => forecast.m === i && forecast.c === cutoff));
    const present = models.map((_, i) => i).filter((i) => forecasts[i]);
    const best = present[present.length - 1];
    chips(present, new Set(series.f.map((forecast) => forecast.c)).size > 1);
    if (page.classes.length) {
      const drawn = present.filter((i) => shown("line", i));
      await stack(cutoff, series, actualTimes, forecasts[drawn[drawn.length - 1]]);
      errors(series, actualTimes, forecasts);
      document.documentElement.dataset.drawn = page.ids[chosen];
      return;
    }
    const traces = [];
    models.forEach((model, i) => {
      const forecast = forecasts[i];
      if (!forecast || !shown("band", i, best)) return;
      const x = times(forecast.t);
      const line = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, x };
      forecast.b.forEach(([low, high], at) => {
        if (x.length < 2 || low.every((value) => value === null)) return;
        traces.push({ ...line, y: low });
        traces.push({ ...line, y: high, fill: "tonexty", fillcolor: shade(model.colour, at ? 0.24 : 0.16) });
      });
    });
    const colours = theme();
    if (shown("actual", 0)) {
      const line = { color: colours.ink, width: 1.4 };
      const mode = actualTimes.length === 1 ? "markers" : "lines";
      traces.push({ name: "Actual", x: actualTimes, y: series.y, mode, line, hovertemplate: "%{y:,.5~r}" });
    }
    // What the best model said at the other cutoffs: a gap between one forecast and the next.
    if (best !== undefined && shown("others", 0)) {
      const others = series.f.filter((forecast) => forecast.m === best && forecast.c !== cutoff);
      const joined = (values) => others.flatMap((forecast) => [...values(forecast), null]);
      const line = { color: models[best].colour, width: 1, dash: "dot" };
      const hovertemplate = "%{y:,.5~r}";
      traces.push({ name: "Other cutoffs", x: joined(({ t }) => times(t)), y: joined(({ q }) => q), mode: "lines", line, hovertemplate });
    }
    models.forEach((model, i) => {
      const forecast = forecasts[i];
      if (!forecast || !shown("line", i)) return;
      const trace = {
        name: plain(model.label), x: times(forecast.t), y: forecast.q, line: { color: model.colour, width: 2 },
        mode: forecast.q.length === 1 ? "markers" : "lines", marker: { color: model.colour, size: 8 }, hovertemplate: "%{y:,.5~r}",
      };
      if (forecast.b.length) {
        const [low, high] = forecast.b[0];
        trace.text = low.map((value, at) => (value === null ? "" : ` (${format(value)} to ${format(high[at])})`));
        trace.hovertemplate += "%{text}";
        if (forecast.q.length === 1 && shown("band", i, best)) {
          const q = forecast.q[0];
          trace.error_y = { type: "data", symmetric: false, array: [high[0] - q], arrayminus: [q - low[0]] };
        }
      }
      traces.push(trace);
    });
    const shapes = [];
    if (series.f.length) {
      const line = { color: colours.muted, width: 1, dash: "dot" };
      shapes.push({ type: "line", x0: cutoff, x1: cutoff, yref: "paper", y0: 0, y1: 1, line, layer: "below" });
    }
    const extra = { shapes, showlegend: false, hovermode: "x unified" };
    const ranges = present.length ? opening(traces, cutoff, actualTimes, times(forecasts[best].t)) : {};
    await draw($("chart"), traces, { type: "date", title: page.clock, range: ranges.x }, { title: "Target", range: ranges.y }, extra);
    errors(series, actualTimes, forecasts);
    document.documentElement.dataset.drawn = page.ids[chosen];
  }

  // Of classes: the probabilities by one model, stacked, and what happened as a row of marks above them.
  async function stack(cutoff, series, actualTimes, forecast) {
    const traces = page.classes.flatMap(({ label, colour }, code) => {
      const at = shown("actual", 0) ? actualTimes.filter((_, i) => series.y[i] === code) : [];
      const marks = { x: at, y: at.map(() => 106), mode: "markers", marker: { color: colour, symbol: "square", size: 6 } };
      const found = [{ ...marks, name: `${plain(label)}, actual`, hovertemplate: " " }];
      if (forecast) {
        const y = forecast.p[code].map((share) => 100 * share);
        const area = { x: times(forecast.t), y, stackgroup: "p", line: { width: 0, shape: "hvh" }, fillcolor: colour };
        found.push({ ...area, name: plain(label), mode: y.length === 1 ? "markers" : "lines", hovertemplate: "%{y:.1f} %" });
      }
      return found;
    });
    const line = { color: theme().muted, width: 1, dash: "dot" };
    const shapes = [{ type: "line", x0: cutoff, x1: cutoff, yref: "paper", y0: 0, y1: 1, line }];
    const ahead = forecast ? times(forecast.t) : [];
    const range = ahead.length ? opening(traces, cutoff, actualTimes, ahead).x : undefined;
    const extra = { shapes, showlegend: true, hovermode: "x unified", legend: { orientation: "h" } };
    await draw($("chart"), traces, { type: "date", title: page.clock, range }, { title: "Probability (%)", range: [0, 112] }, extra);
  }

  // What the chart opens on: the forecast, and three times as many steps before it.
  function opening(traces, cutoff, before, ahead) {
    const past = before.filter((time) => time <= cutoff);
    const from = past[Math.max(0, past.length - Math.max(24, 3 * ahead.length))] ?? cutoff;
    const to = ahead[ahead.length - 1];
    const seen = traces.flatMap(({ x, y, error_y }) =>
      y.flatMap((value, i) => {
        if (value === null || x[i] < from || x[i] > to) return [];
        return error_y ? [value - error_y.arrayminus[i], value + error_y.array[i]] : [value];
      }),
    );
    const [low, high] = seen.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const margin = 0.06 * (high - low) || 0.06 * Math.abs(high) || 1;
    return { x: [from, to + 0.01 * (to - from)], y: high < low ? undefined : [low - margin, high + margin] };
  }

  function errors(series, actualTimes, forecasts) {
    const actual = new Map(actualTimes.map((time, i) => [time, series.y[i]]));
    const parts = [];
    let most = 0;
    forecasts.forEach((forecast, i) => {
      if (!forecast) return;
      const gaps = times(forecast.t)
        .map((time, at) => [actual.get(time), forecast.q[at]])
        .filter(([y, q]) => y !== undefined && y !== null && q !== null)
        .map(([y, q]) => (page.classes.length ? Number(y !== q) : Math.abs(y - q)));
      most = Math.max(most, gaps.length);
      if (gaps.length) parts.push([models[i].label, gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length]);
    });
    $("errors").replaceChildren();
    if (!series.f.length) $("errors").textContent = "No forecast for this series.";
    if (!parts.length) return;
    const error = page.classes.length ? "Share of other classes than the most probable one" : "Mean absolute error of the median";
    $("errors").append(`${error} over ${most} known step${most === 1 ? "" : "s"}: `);
    parts.forEach(([label, value], i) => $("errors").append(i ? ", " : "", `${label} `, element("b", format(value))));
  }

  async function again() {
    if (chosen >= 0) await show(await load(chosen));
  }

  function toggle(kind, i, label, colour, best) {
    const button = element("button", undefined, { type: "button" });
    const swatch = element("span", undefined, { className: kind === "band" ? "swatch area" : "swatch" });
    swatch.style.background = colour;
    button.append(swatch, label);
    button.setAttribute("aria-pressed", String(shown(kind, i, best)));
    button.addEventListener("click", () => {
      switched[kind].set(i, !shown(kind, i, best));
      button.setAttribute("aria-pressed", String(shown(kind, i, best)));
      again();
    });
    return button;
  }

  // The buttons are made again only for another set of models, so that a pressed one keeps the focus.
  function chips(present, others) {
    const drawn = String([present, others]);
    if ($("legend").dataset.drawn === drawn) return;
    $("legend").dataset.drawn = drawn;
    const best = present[present.length - 1];
    const intervals = `${page.bands.map((band) => format(100 * band)).join(" / ")} %`;
    const groups = present.map((i) => {
      const { label, colour } = models[i];
      const buttons = [toggle("line", i, label, colour, best)];
      if (page.bands.length) buttons.push(toggle("band", i, intervals, colour, best));
      if (page.bands.length) buttons[1].title = `Intervals of ${label}`;
      return buttons;
    });
    if (others && !page.classes.length) groups.push([toggle("others", 0, "Other cutoffs", models[best].colour)]);
    $("legend").replaceChildren(
      ...[[toggle("actual", 0, "Actual", "var(--ink)")], ...groups].map((buttons) => {
        const made = element("span");
        made.append(...buttons);
        return made;
      }),
    );
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const index = page.ids.indexOf(asked.get("series"));
    $("notice").hidden = !asked.has("series") || index >= 0;
    $("notice").textContent = `This report has no series ${asked.get("series")}.`;
    return [index, Number(asked.get("cutoff"))];
  }

  async function browser() {
    if (!page.ids.length) return;
    $("browser").hidden = false;
    for (const [key, order] of Object.entries(orders)) {
      if (key === "name" || order.values) $("order").append(element("option", order.label, { value: key }));
    }
    $("order").hidden = $("order").options.length < 2;
    arrange();
    $("search").addEventListener("input", () => {
      $("list").scrollTop = 0;
      arrange();
    });
    $("search").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "ArrowDown") return;
      event.preventDefault();
      if (matches.length) select(matches[0]);
      $("list").focus({ preventScroll: true });
    });
    $("order").addEventListener("change", () => {
      $("list").scrollTop = 0;
      arrange();
      if (matches.length) select(matches[0]);
    });
    $("list").addEventListener("scroll", fill, { passive: true });
    $("previous").addEventListener("click", () => move(-1));
    $("next").addEventListener("click", () => move(1));
    $("cutoff").addEventListener("change", async () => {
      await again();
      remember();
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      const inList = event.target === $("list");
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: inList ? -1 : 0, ArrowDown: inList ? 1 : 0 }[event.key];
      if (by) move(by);
      else if (event.key === "/") $("search").focus();
      else return;
      event.preventDefault();
    });
    window.addEventListener("hashchange", () => {
      const [index, cutoff] = fromAddress();
      if (index >= 0 && (index !== chosen || String(cutoff) !== $("cutoff").value)) select(index, cutoff);
    });
    new ResizeObserver(fill).observe($("list"));
    redraws.push(again);
    const [index, cutoff] = fromAddress();
    await select(Math.max(index, 0), cutoff);
  }

  // ---- Charts over all series ----

  function lines(id, x, y, extra) {
    const found = page[id];
    $(id).hidden = !found;
    if (!found) return;
    const target = $(id).querySelector(".chart");
    const render = () => {
      const traces = found.map((line) => ({
        name: plain(line.label), x: line.x, y: line.y, mode: line.x.length < 60 ? "lines+markers" : "lines",
        line: { color: line.colour, width: 2 }, marker: { size: 5 }, hovertemplate: "%{y:,.5~r}",
      }));
      return draw(target, [...traces, ...(extra ? [extra(theme())] : [])], x, y, { hovermode: "x unified", showlegend: true });
    };
    redraws.push(render);
    render();
  }

  // ---- Decisions of fine-tuning ----

  function decisions() {
    const table = page.decisions;
    if (!table) return;
    const section = $("decisions");
    section.hidden = false;
    const column = (name) => table.columns.indexOf(name);
    const rows = table.rows;
    const gain = column("gain");
    const blend = column("blend");
    const tuned = (row) => row[blend] > 0;

    const counted = (list) => list.length.toLocaleString("en-US");
    const changed = rows.filter(tuned);
    const sentences = [`${counted(changed)} of ${counted(rows)} series are fine-tuned, the others keep the base.`];
    // What it was worth where neither the fit nor the gate has looked, if that was measured.
    const uplift = column("uplift");
    const judged = changed.map((row) => row[uplift]).filter((share) => share !== null);
    if (judged.length) {
      const share = (test) => percent(judged.filter(test).length / judged.length, 0);
      const [improved, worse] = [share((gained) => gained > 0), share((gained) => gained < -0.02)];
      sentences.push(`On later windows that neither the fit nor the gate has seen, ${improved} of them improved and ${worse} lost more than 2 %.`);
    }
    $("uplift").textContent = sentences.join(" ");

    // Shares beyond ±100 % are counted in the outermost bars.
    function histogram(id, at, title) {
      const shown = at === gain ? rows : changed;
      const values = (wanted) => shown.filter((row) => tuned(row) === wanted && row[at] !== null).map((row) => 100 * row[at]);
      const parts = [false, true].map((wanted) => values(wanted).map((value) => Math.max(-99.9, Math.min(99.9, value))));
      const reach = parts.flat().reduce((most, value) => Math.max(most, Math.abs(value)), 1);
      const width = [0.1, 0.2, 0.5, 1, 2, 5].find((step) => reach / step <= 20) ?? 5;
      const render = () => {
        const bars = parts.map((part, i) => {
          const counts = new Map();
          part.forEach((value) => counts.set(Math.floor(value / width), (counts.get(Math.floor(value / width)) ?? 0) + 1));
          const bins = [...counts.keys()].sort((a, b) => a - b);
          return {
            type: "bar", name: ["Base kept", "Fine-tuned"][i], width, marker: { color: page.colours[i], line: { color: theme().card, width: 1 } },
            x: bins.map((bin) => (bin + 0.5) * width), y: bins.map((bin) => counts.get(bin)),
            hovertext: bins.map((bin) => `${format(bin * width)} to ${format((bin + 1) * width)} %`), hovertemplate: "%{hovertext}: %{y} series",
          };
        });
        const line = { color: theme().muted, width: 1, dash: "dot" };
        const shapes = [{ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line }];
        const highest = Math.max(0, ...bars.flatMap((bar) => bar.y));
        const y = { title: "Series", tickformat: ",d", ...(highest < 8 ? { dtick: 1 } : {}) };
        return draw($(id), bars, { title }, y, { barmode: "stack", shapes, showlegend: true });
      };
      redraws.push(render);
      render();
    }
    $("later").parentElement.hidden = !judged.length;
    $("gate").parentElement.parentElement.classList.toggle("two", judged.length > 0);
    if (judged.length) histogram("later", uplift, "Uplift, of the loss (%)");
    histogram("gate", gain, "Gain in the gate's loss (%)");

    const labels = { series_id: "Series", base_loss: "Base loss", tuned_loss: "Tuned loss", gain: "Gain", posterior_gain: "Posterior gain", harm_probability: "Harm", penalty: "Penalty", width: "Width", blend: "Blend", reason: "Reason", report_base_loss: "Later base loss", report_tuned_loss: "Later tuned loss", uplift: "Uplift" };
    const known = new Map(page.ids.map((id, i) => [id, i]));
    const numeric = table.columns.map((_, i) => rows.some((row) => typeof row[i] === "number"));
    function cell(value, i) {
      const name = table.columns[i];
      if (name === "series_id" && known.has(value)) {
        const open = element("button", value, { type: "button", className: "open" });
        open.addEventListener("click", () => {
          select(known.get(value));
          $("browser").scrollIntoView({ behavior: "smooth" });
        });
        return open;
      }
      if (i === gain || i === uplift || name === "posterior_gain") return value === null ? "–" : signedPercent(value);
      if (name === "harm_probability") return value === null ? "–" : percent(value, 0);
      return numeric[i] ? format(value, 4, name.endsWith("loss")) : (value ?? "–");
    }
    const columns = table.columns.map((name, i) => ({
      label: labels[name] ?? name, numeric: numeric[i], wide: name === "reason", searched: name === "series_id" || name === "reason",
      cell: (value) => cell(value, i),
    }));
    sortable(section, columns, rows, gain);
  }

  // How often targets were within each level, beside how often they should have been.
  function levels(id) {
    lines(
      id, { title: "Level or probability stated (%)", range: [0, 100] }, { title: "Observed share (%)", range: [0, 100] },
      (colours) => ({
        name: "Perfectly calibrated", x: [0, 100], y: [0, 100], mode: "lines", hoverinfo: "skip",
        line: { color: colours.muted, width: 1, dash: "dot" },
      }),
    );
  }

  // First all places, then the charts: each takes the width that the others leave it.
  for (const id of ["steps", "calibration"]) $(id).hidden = !page[id];
  const [error, unit] = page.classes.length
    ? ["Share of steps", "Share of steps at which another class came than the most probable one, over all series."]
    : ["Mean absolute error", "Mean absolute error over all series, in units of the target."];
  $("steps").querySelector(".caption span").textContent = unit;
  decisions();
  lines("steps", { title: "Steps after the cutoff", tickformat: ",d" }, { title: error, rangemode: "tozero" });
  levels("calibration");
  levels("calibrated");
  lines("loss", { title: "Optimiser step", tickformat: ",d" }, { title: "Loss" });
  await browser();
});
