// What all pages are drawn with. Data arrives as gzip + base64 in <script type="text/plain"> tags. Text from data only ever becomes
// textContent, or passes plain().
const Page = (() => {
  "use strict";

  const FIRST = 15; // rows of a table to begin with
  const MORE = 100; // rows added at a time
  const $ = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });
  const redraws = []; // what to draw again when the colours change

  async function unpack(id) {
    const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function element(tag, text, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Plotly reads a subset of HTML in its texts.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // `digits` significant ones: at most, or with `exact` always, so that the numbers of a column line up.
  function format(value, digits = 4, exact = false) {
    if (value === null) return "–";
    const options = { maximumSignificantDigits: digits, minimumSignificantDigits: exact ? digits : 1 };
    return value.toLocaleString("en-US", options).replace("-", "−");
  }
  const percent = (share, decimals = 1) => (share === null ? "–" : `${(100 * share).toFixed(decimals).replace("-", "−")} %`);
  const signedPercent = (share) => (share > 0 ? "+" : "") + percent(share);
  const stamp = (time) => new Date(time).toISOString().slice(0, time % 86400000 ? 16 : 10).replace("T", " ");

  function shade(colour, alpha) {
    const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${alpha})`;
  }

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: of("ink"), muted: of("muted"), grid: of("grid"), line: of("line"), card: of("card") };
  }

  function notify(text) {
    $("notice").textContent = text;
    $("notice").hidden = false;
  }

  function draw(target, traces, x, y, extra = {}) {
    const colours = theme();
    const axis = (given) => ({
      gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.line, tickfont: { color: colours.muted },
      automargin: true, ...given, title: { text: given.title, font: { size: 12.5, color: colours.muted }, standoff: 10 },
    });
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 10, r: 12, t: 10, b: 10 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.ink },
      hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.ink } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
      xaxis: axis(x), yaxis: axis(y), ...extra,
    };
    if (!("Plotly" in window)) {
      notify("The charts need plotly.min.js, which lies beside the folder of this page in output.path; the tables do not.");
      return target?.remove(); // gone already when it is drawn again
    }
    return Plotly.react(target, traces, layout, { displayModeBar: false, responsive: true });
  }

  // Times come as [first, gap, how often, gap, how often, ...] in milliseconds.
  function times([first, ...runs]) {
    if (first === undefined) return [];
    const found = [first];
    for (let at = 0; at < runs.length; at += 2) {
      for (let n = 0; n < runs[at + 1]; n++) found.push(found[found.length - 1] + runs[at]);
    }
    return found;
  }

  // A table that is sorted by a click on a heading and searched in the columns that are `searched`. Rows are arrays; `cell` gives what
  // to show for a value, a text or an element.
  function sortable(section, columns, rows, by) {
    let down = true;
    let limit = FIRST;
    let sorted = [];
    const search = section.querySelector(".tools input");
    const more = section.querySelector(".more");

    function fill() {
      section.querySelector("tbody").replaceChildren(
        ...sorted.slice(0, limit).map((row) => {
          const made = element("tr");
          columns.forEach(({ numeric, wide, cell }, i) => {
            const place = element("td", undefined, { className: numeric ? "number" : wide ? "wide" : "" });
            place.append(cell(row[i]));
            made.append(place);
          });
          return made;
        }),
      );
      const [part, whole] = [Math.min(limit, sorted.length), sorted.length].map((count) => count.toLocaleString("en-US"));
      section.querySelector(".tools span").textContent = `${part} of ${whole} rows`;
      more.hidden = sorted.length <= limit;
    }

    function sort() {
      const wanted = search.value.trim().toLowerCase();
      const texts = columns.map((_, i) => i).filter((i) => columns[i].searched);
      sorted = rows.filter((row) => texts.some((i) => String(row[i]).toLowerCase().includes(wanted)));
      const sign = down ? -1 : 1;
      // Missing values come last either way.
      sorted.sort((a, b) => {
        const [left, right] = [a[by], b[by]];
        if (left === null || right === null) return (left === null) - (right === null);
        return sign * (columns[by].numeric ? left - right : collator.compare(left, right));
      });
      heads.forEach((head, i) => {
        if (i === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      fill();
    }

    const heads = columns.map(({ label, title, numeric }, i) => {
      const head = element("th", undefined, { className: numeric ? "number" : "", scope: "col", title: title ?? "" });
      const button = element("button", label, { type: "button" });
      button.addEventListener("click", () => {
        down = by === i ? !down : numeric;
        by = i;
        sort();
      });
      head.append(button);
      return head;
    });
    const headRow = element("tr");
    headRow.append(...heads);
    section.querySelector("thead").append(headRow);
    search.addEventListener("input", sort);
    more.addEventListener("click", () => {
      limit += MORE;
      fill();
    });
    sort();
  }

  function start(main) {
    if (!("DecompressionStream" in window)) {
      notify("This browser is too old for the charts: it can't unpack their data.");
      return;
    }
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((render) => render()));
    main();
  }

  return { $, unpack, element, plain, format, percent, signedPercent, stamp, shade, theme, draw, redraws, times, sortable, start };
})();

