// Draws the page of a day's monitoring: accuracy over time, by age and by interval, and the series with an alarm.
Page.start(async () => {
  "use strict";

  const { $, unpack, element, plain, format, shade, theme, draw, redraws, times, sortable } = Page;
  const page = await unpack("page");

  function render(paint) {
    redraws.push(paint);
    return paint();
  }

  // A heading and a place for a chart in the grid of a section.
  function field(section, title) {
    const made = element("div");
    const chart = element("div", undefined, { className: "chart small" });
    made.append(element("h3", title), chart);
    section.querySelector(".grid").append(made);
    return chart;
  }

  const vertical = (x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: theme().muted, width: 1, dash: "dot" } });

  function lines(chart, x, series, axisX, axisY, shapes = () => []) {
    render(() => {
      const traces = series.map(({ label, colour, y, dash }) => ({
        name: plain(label), x, y, mode: "lines+markers", line: { color: colour ?? theme().muted, width: 2, dash }, marker: { size: 5 },
        hovertemplate: "%{y:.4~r}",
      }));
      return draw(chart, traces, axisX, axisY, { hovermode: "x unified", showlegend: true, shapes: shapes() });
    });
  }

  if (page.time.x.length) {
    $("time").hidden = false;
    const axis = { type: "date", title: page.clock };
    page.time.charts.forEach(({ title, series }) =>
      lines(field($("time"), title), page.time.x, series, axis, { title: "", rangemode: "tozero" }, () => [vertical(page.recent)]),
    );
  }
  if (page.ages.length) {
    $("ages").hidden = false;
    page.ages.forEach(({ title, axis, x, series }) => lines(field($("ages"), title), x, series, { title: axis, type: "category" }, { title: "", rangemode: "tozero" }));
  }

  // ---- Series with an alarm ----

  const shown = page.alarms.series;
  let chosen = 0;

  function select(index) {
    chosen = index;
    show();
  }

  function show() {
    const { name, why, t, y, f } = shown[chosen];
    $("name").textContent = name;
    $("why").textContent = why;
    const x = times(f.t);
    const area = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    const traces = [
      { ...area, y: f.low }, { ...area, y: f.high, fill: "tonexty", fillcolor: shade(page.colour, 0.18) },
      { name: "Forecast, the freshest of each step", x, y: f.q, mode: "lines", line: { color: page.colour, width: 2 }, hovertemplate: "%{y:,.5~r}" },
      { name: "Actual", x: times(t), y, mode: "lines", line: { color: theme().ink, width: 1.4 }, hovertemplate: "%{y:,.5~r}" },
    ];
    $("previous").disabled = chosen === 0;
    $("next").disabled = chosen === shown.length - 1;
    document.documentElement.dataset.drawn = name;
    return draw($("chart"), traces, { type: "date", title: page.clock }, { title: "" }, { hovermode: "x unified", showlegend: true, shapes: [vertical(page.recent)] });
  }

  function move(by) {
    const next = chosen + by;
    if (next >= 0 && next < shown.length) select(next);
  }

  if (shown.length) {
    $("alarms").hidden = false;
    const places = new Map(shown.map(({ name }, i) => [name, i]));
    const columns = page.alarms.columns.map(({ label, numeric }, i) => ({
      label, numeric, searched: i === 0,
      cell: (value) => {
        if (i === 0 && places.has(value)) {
          const open = element("button", value, { type: "button", className: "open" });
          open.addEventListener("click", () => {
            select(places.get(value));
            $("alarms").scrollIntoView({ behavior: "smooth" });
          });
          return open;
        }
        return numeric ? format(value) : (value ?? "–");
      },
    }));
    sortable($("alarms"), columns, page.alarms.rows, page.alarms.columns.length - 1);
    $("previous").addEventListener("click", () => move(-1));
    $("next").addEventListener("click", () => move(1));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) move(by);
    });
    render(show);
  }
  document.documentElement.dataset.done = "yes";
});
