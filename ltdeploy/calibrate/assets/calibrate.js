// The sweep, the charts, the class table and the downloads of a choice of fix.
(() => {
  "use strict";
  const {
    result, view, color, isNumber, fixed, signed, element, difference, csv, offer,
    column, classColumns, classTable, onTheme,
  } = report;
  const { groups } = view;

  // --- accuracies over a parameter ---------------------------------------------------------------
  const AVERAGES = {
    balanced: { borderWidth: 2.75 },
    // Where every class has as many images, it lies on the balanced curve and must show there.
    overall: { borderWidth: 2, borderDash: [7, 5], order: 0 },
    harmonic: { borderWidth: 1.75, borderDash: [2, 3] },
  };
  const show = (value) => String(Number(value.toPrecision(4))).replace("-", "−");
  const nearest = (values, wanted) =>
    values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);
  const picker = document.getElementById("sweep-method");
  const slider = document.getElementById("sweep-value");
  const sweepOf = () => result.sweeps[Number(picker.value)];

  const uprights = (sweep) => ({
    id: "uprights",
    beforeDatasetsDraw({ ctx, chartArea, scales }) {
      const line = (value, paint, width, dash) => {
        const x = scales.x.getPixelForValue(value);
        ctx.strokeStyle = paint; ctx.lineWidth = width; ctx.setLineDash(dash);
        ctx.beginPath(); ctx.moveTo(x, chartArea.top); ctx.lineTo(x, chartArea.bottom); ctx.stroke();
      };
      ctx.save();
      line(sweep.chosen, color("accent"), 2, []);
      line(sweep.values[Number(slider.value)], color("soft"), 1, [3, 3]);
      ctx.restore();
    },
  });
  const curve = (sweep, name) => {
    const group = groups.indexOf(name);
    const paint = group >= 0 ? charts.groupColor(name) : color(name === "overall" ? "before" : "ink");
    const every = Math.max(1, Math.round(sweep.values.length / 12));
    return {
      label: name, borderColor: paint, backgroundColor: paint, borderWidth: 2.25, pointHitRadius: 6,
      // Groups carry their shape at some of the values, so that colour is not the only sign.
      pointStyle: group < 0 ? "line" : charts.SHAPES[group % 3], pointHoverRadius: 5,
      pointRadius: sweep.values.map((_, i) => (group >= 0 && (i + 2 * group) % every === 0 ? 4 : 0)),
      clip: false, order: group < 0 ? 2 : 1, ...AVERAGES[name],
      data: sweep.values.map((x, i) => ({ x, y: sweep.series[name][i] })),
    };
  };

  // The mildest value comes first, which of a penalty is the largest; penalties go by decades.
  const scaleOf = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const decades = low > 0 && high / low >= 50;
    return {
      type: decades ? "logarithmic" : "linear", min: low, max: high, reverse: values[0] > values.at(-1),
      ...(decades ? { ticks: { callback: (value) => (Number.isInteger(Math.log10(value)) ? show(value) : null) } } : {}),
    };
  };

  let sweepChart;
  const seriesOf = (sweep) => [...groups, ...Object.keys(AVERAGES)].filter((name) => sweep.series[name]?.some(isNumber));
  const standing = ({ method }) => (method === result.chosen.name
    ? `${method} is the chosen fix.` : `${method} is not the chosen fix; that is ${result.chosen.name}.`);
  const describe = (sweep) => {
    const [first, last] = [sweep.values[0], sweep.values.at(-1)];
    const ends = seriesOf(sweep).map((name) => {
      const series = sweep.series[name];
      return `${name} from ${fixed(series[0], 1)} to ${fixed(series.at(-1), 1)}, ${fixed(series[nearest(sweep.values, sweep.chosen)], 1)} at its best value`;
    });
    return `Accuracy in per cent over ${sweep.parameter} of ${sweep.method} from ${show(first)} to ${show(last)}; its best value is ${show(sweep.chosen)}. ${standing(sweep)} ${ends.join("; ")}. The slider below reads every value.`;
  };
  const drawSweep = () => {
    if (!picker) return;
    const sweep = sweepOf(), canvas = document.getElementById("sweep");
    canvas.setAttribute("aria-label", describe(sweep));
    sweepChart = charts.draw(canvas, {
      type: "line",
      plugins: [uprights(sweep)],
      data: { datasets: seriesOf(sweep).map((name) => curve(sweep, name)) },
      options: {
        interaction: { mode: "nearest", intersect: true },
        layout: { padding: { right: 12, top: 6 } },
        scales: {
          x: charts.axis(`${sweep.parameter} of ${sweep.method}`, scaleOf(sweep.values)),
          y: charts.axis("accuracy, %", { beginAtZero: true }),
        },
        plugins: {
          legend: { display: false },
          tooltip: charts.tooltip(({ dataset, raw }) => `${dataset.label}: ${fixed(raw.y, 1)} % at ${sweep.parameter} ${show(raw.x)}`),
        },
      },
    });
  };

  // The curves as figures: at the slider, at the method's best value, and what lies between.
  const readSweep = () => {
    const sweep = sweepOf(), names = seriesOf(sweep), here = Number(slider.value);
    const best = nearest(sweep.values, sweep.chosen);
    const value = `${sweep.parameter} ${show(sweep.values[here])}`;
    document.getElementById("sweep-at").textContent = value;
    slider.setAttribute("aria-valuetext", value);
    const row = (head, show) => element("tr", {}, element("th", { scope: "row" }, head),
      ...names.map((name) => element("td", { class: "num" }, show(sweep.series[name]))));
    document.getElementById("sweep-table").replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Accuracy, %"),
        ...names.map((name) => element("th", { scope: "col", class: "num" },
          groups.includes(name) ? element("span", { class: `swatch tint-${charts.tint(name)}` }) : "", name)))),
      element("tbody", {},
        row(`at ${value}`, (series) => fixed(series[here], 1)),
        row(`best value, ${sweep.parameter} ${show(sweep.values[best])}`, (series) => fixed(series[best], 1)),
        row("difference, points", (series) => signed(difference(series[here], series[best]), 1))),
    );
    sweepChart?.draw();
  };
  const chooseSweep = () => {
    const sweep = sweepOf();
    slider.max = sweep.values.length - 1;
    slider.value = nearest(sweep.values, sweep.chosen);
    document.getElementById("sweep-note").textContent = standing(sweep);
    drawSweep();
    readSweep();
  };

  // --- classes and confidence --------------------------------------------------------------------
  onTheme(() => {
    drawSweep();
    charts.scatter(document.getElementById("scatter"), result.classes, "before", "after");
    charts.reliability((group) => [
      { model: "before", stroke: "dashed", bins: result.confidence.before[group].bins },
      { model: "after", stroke: "bold", bins: result.confidence.after[group].bins },
    ]);
  });
  if (picker) {
    chooseSweep();
    picker.addEventListener("change", chooseSweep);
    slider.addEventListener("input", readSweep);
  }

  const accuracy = (value) => fixed(value, 1);
  const rows = result.classes
    .map((c) => ({ ...c, change: difference(c.after, c.before) }))
    // What deserves the eye comes first: the largest drops, then the rarest.
    .sort((a, b) => (a.change ?? Infinity) - (b.change ?? Infinity) || a.train_count - b.train_count);
  const grid = classTable(rows, [
    ...classColumns(),
    column.number("before", "Before", accuracy, { minWidth: 88 }),
    column.number("after", "After", accuracy, { minWidth: 88 }),
    column.change("change", "Δ", { headerSortStartingDir: "asc", minWidth: 80 }),
  ]);
  document.getElementById("only-worse").addEventListener("click", () => grid.setHeaderFilterValue("change", "<0"));

  // --- downloads ---------------------------------------------------------------------------------
  const spread = (name, figure) => ({
    [name]: figure?.value, [`${name}_low`]: figure?.low, [`${name}_high`]: figure?.high,
  });
  const methodRow = ({ name, status, freedom, methods, objective, behind, head_change, figures, note }) => ({
    name, status, freedom, methods: JSON.stringify(methods),
    ...spread("objective", objective),
    behind: behind.value, behind_standard_error: behind.standard_error,
    ...spread("head_change", head_change),
    ...["overall", "balanced", "harmonic"].reduce((row, key) => ({ ...row, ...spread(key, figures[key]) }), {}),
    ...groups.reduce((row, group) => ({ ...row, ...spread(group, figures.groups[group]) }), {}),
    ...spread("worst", figures.worst), worst_label: figures.worst?.label,
    ...["nll", "ece", "classwise_ece"].reduce((row, key) => ({ ...row, ...spread(key, figures[key]) }), {}),
    ...groups.reduce((row, group) => ({ ...row, ...spread(`ece_${group}`, figures.group_ece[group]) }), {}),
    note,
  });
  const sets = (make) => Object.entries(result.confidence).flatMap(([when, found]) =>
    Object.entries(found).filter(([, one]) => one).flatMap(([images, one]) => make({ when, images }, one)));
  offer({
    methods: () => csv(result.methods.map(methodRow)),
    sweeps: () => csv(result.sweeps.flatMap(({ method, parameter, values, series, chosen }) => values.map((value, i) => ({
      method, parameter, value, chosen: i === nearest(values, chosen),
      ...Object.fromEntries(Object.entries(series).map(([name, column]) => [name, column[i]])),
    })))),
    confidence: () => csv(sets((key, { accuracy, confidence, ece }) => [{ ...key, accuracy, confidence, ece }])),
    reliability: () => csv(sets((key, { bins }) => bins.map((bin, place) => ({ ...key, bin: place, ...bin })))),
    skipped: () => csv(result.skipped),
  });
})();
