// Draws the page of a scenario: planned forecasts and those of the scenario, in total and of a few series.
Page.start(async () => {
  "use strict";

  const { $, unpack, element, plain, theme, draw, redraws } = Page;
  const SCENARIO = "#d9822b";
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
      draw(chart, [line("Planned", values.base, theme().muted, "dot"), line("Scenario", values.scenario, SCENARIO, "solid")], axis, { title: "" }, {
        hovermode: "x unified", showlegend: true,
      }),
    );
  }

  function change(chart, values) {
    const bars = { type: "bar", x: moments(values), y: values.difference, marker: { color: SCENARIO }, hovertemplate: "%{y:,.5~r}<extra></extra>" };
    render(() => draw(chart, [bars], axis, { title: "" }, { showlegend: false }));
  }

  both(field($("total"), "Forecasts"), page.total);
  change(field($("total"), "Difference"), page.total);
  page.charts.forEach((values) => both(field($("charts"), values.name), values));
});
