// Draws the page of a comparison: forecasts before and after, in total and of a few series, and the parts of the change.
Page.start(async () => {
  "use strict";

  const { $, unpack, element, plain, theme, draw, redraws } = Page;
  const COLOURS = ["#3577dc", "#d9822b", "#2f9e6e", "#8a8f98"];
  const page = await unpack("page");

  function field(section, title) {
    const place = element("div");
    const chart = element("div", undefined, { className: "chart small" });
    place.append(element("h3", plain(title)), chart);
    section.querySelector(".grid").append(place);
    return chart;
  }

  function render(paint) {
    redraws.push(paint);
    paint();
  }

  const axis = { type: "date", title: page.clock };
  const moments = ({ t }) => t.map((time) => new Date(time).toISOString().slice(0, 19));

  function both(chart, values) {
    const line = (name, y, color, dash) => ({
      name, x: moments(values), y, mode: "lines+markers", line: { color, width: 2, dash }, marker: { size: 4 }, hovertemplate: "%{y:,.5~r}",
    });
    render(() =>
      draw(chart, [line("Before", values.before, theme().muted, "dot"), line("After", values.after, COLOURS[0], "solid")], axis, { title: "" }, {
        hovermode: "x unified", showlegend: true,
      }),
    );
  }

  function parts(chart, values) {
    const bars = values.parts.map((y, i) => ({
      type: "bar", name: page.labels[i], x: moments(values), y, marker: { color: COLOURS[i] }, hovertemplate: "%{y:,.5~r}",
    }));
    render(() => draw(chart, bars, axis, { title: "" }, { barmode: "relative", hovermode: "x unified", showlegend: true }));
  }

  both(field($("total"), "Forecasts"), page.total);
  parts(field($("total"), "Parts of the change"), page.total);
  page.charts.forEach((values) => both(field($("charts"), values.name), values));
});
