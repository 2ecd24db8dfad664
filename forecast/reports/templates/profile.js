// Draws the profile of a panel: histograms, a few series, and the table of series.
Page.start(async () => {
  "use strict";

  const { $, unpack, element, plain, format, percent, theme, draw, redraws, times, sortable } = Page;
  const COLOUR = "#3577dc";
  const page = await unpack("page");

  // A heading, a note and a place for a chart, in the next field of a section's grid.
  function field(section, title, note, drawn) {
    const made = element("div");
    const chart = element("div", undefined, { className: "chart small" });
    made.append(element("h3", title), element("p", note, { className: "caption" }));
    if (drawn) made.append(chart);
    section.querySelector(".grid").append(made);
    return chart;
  }

  function render(paint) {
    redraws.push(paint);
    paint();
  }

  function histogram({ title, axis, edges, labels, counts, note, share }) {
    const chart = field($("charts"), title, note, counts);
    if (!counts) return;
    const write = (value) => (share ? percent(value) : format(value, 6));
    const bars = { type: "bar", y: counts, marker: { color: COLOUR } };
    if (labels) Object.assign(bars, { x: labels, hovertemplate: "%{y:,} series<extra></extra>" });
    else {
      const [from, to] = [edges.slice(0, -1), edges.slice(1)];
      bars.x = from.map((edge, i) => (edge + to[i]) / 2);
      bars.width = from.map((edge, i) => 0.92 * (to[i] - edge));
      bars.hovertext = from.map((edge, i) => `${write(edge)} to ${write(to[i])}`);
      bars.hovertemplate = "%{hovertext}: %{y:,} series<extra></extra>";
    }
    const y = { tickformat: ",d", rangemode: "tozero", ...(Math.max(...counts) < 5 ? { dtick: 1 } : {}) };
    const x = { title: axis, ...(labels ? {} : { range: [edges[0], edges[edges.length - 1]] }), ...(share ? { tickformat: ".3~p" } : {}) };
    render(() => draw(chart, [bars], x, y, { bargap: 0.4 }));
  }

  function example({ name, why, t, y }) {
    const chart = field($("examples"), name, why, true);
    const x = times(t);
    // A value between two gaps is no line.
    const alone = y.map((value, i) => value !== null && (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null);
    render(() => {
      const colour = theme().ink;
      const line = { name: plain(name), x, y, mode: "lines", line: { color: colour, width: 1.2 }, hovertemplate: "%{x}: %{y:,.5~r}<extra></extra>" };
      const points = { ...line, mode: "markers", y: y.map((value, i) => (alone[i] ? value : null)), marker: { color: colour, size: 4 } };
      const traces = alone.includes(true) ? [line, points] : [line];
      return draw(chart, traces, { type: "date", title: "" }, { title: "" }, { showlegend: false });
    });
  }

  const heads = {
    series_id: "Series", first: "First", last: "Last", length: "Steps", gaps: "Missing", longest_gap: "Longest gap", zeros: "Zeros",
    trailing_zeros: "Zeros at the end", negatives: "Negative", mean: "Mean", std: "Std", min: "Min", max: "Max", adi: "ADI", cv2: "CV²",
    demand: "Demand", seasonality: "Season", trend: "Trend", classes: "Classes", class: "Most frequent", share: "Share",
  };
  const titles = {
    zeros: "Share of observed values", negatives: "Share of observed values", trailing_zeros: "Steps since the last value that is not zero",
    longest_gap: "Most missing steps in a row", adi: "Average inter-demand interval", cv2: "Squared coefficient of variation of demand that is not zero",
    seasonality: "Strength of the season, 0 to 1", trend: "Strength of the trend, 0 to 1", std: "Standard deviation",
    share: "Share of observed values that are of the most frequent class",
  };
  const texts = new Set(["series_id", "first", "last", "demand", "class"]);
  const shares = new Set(["zeros", "negatives", "share"]);
  const strengths = new Set(["seasonality", "trend"]);

  function cell(name, value) {
    if (value === null) return "–";
    if (texts.has(name)) return value;
    if (shares.has(name)) return percent(value);
    return strengths.has(name) ? value.toFixed(2) : Number.isInteger(value) ? format(value, 21) : format(value);
  }

  ["charts", "series"].forEach((id) => ($(id).hidden = false));
  $("examples").hidden = !page.examples.length;
  page.charts.forEach(histogram);
  page.examples.forEach(example);
  const columns = page.columns.map((name) => ({
    label: heads[name], title: titles[name], numeric: !texts.has(name), searched: ["series_id", "demand", "class"].includes(name),
    cell: (value) => cell(name, value),
  }));
  sortable($("series"), columns, page.rows, page.columns.indexOf("gaps"));
  document.documentElement.dataset.drawn = page.rows.length;
});
