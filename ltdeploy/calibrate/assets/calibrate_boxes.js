// The shifts, the class table and the downloads of a detector's choice of fix.
(() => {
  "use strict";
  const {
    result, view, color, fixed, signed, whole, difference, csv, offer, column, classColumns,
    classTable, onTheme,
  } = report;
  const { classes } = result;
  const isFixed = result.chosen.methods.length > 0;
  const isScaled = classes.some((c) => c.scale !== 1);

  // --- what the fix adds to each class -----------------------------------------------------------
  const MOST_NAMED = 8;
  const canvas = document.getElementById("shift-chart");
  // A count of zero has no logarithm; it stands left of one and the tooltip tells the truth.
  const at = (c) => Math.max(c.train_count, 0.5);
  const shown = (value) => (value === 0.5 ? "0" : value.toLocaleString("en"));
  const names = {
    id: "names",
    afterDatasetsDraw({ ctx, chartArea, scales }) {
      if (classes.length > MOST_NAMED) return;
      ctx.save();
      ctx.fillStyle = color("ink");
      ctx.font = "13px system-ui, sans-serif";
      ctx.textBaseline = "middle";
      for (const c of classes) {
        const x = scales.x.getPixelForValue(at(c)), y = scales.y.getPixelForValue(c.shift);
        const toLeft = x > (chartArea.left + chartArea.right) / 2;
        ctx.textAlign = toLeft ? "right" : "left";
        ctx.fillText(c.name, x + (toLeft ? -11 : 11), y);
      }
      ctx.restore();
    },
  };
  const drawShifts = () => {
    if (!canvas) return;
    const counts = classes.map(at);
    const low = counts.reduce((a, b) => Math.min(a, b)), high = counts.reduce((a, b) => Math.max(a, b));
    const wide = high / low >= 10;
    const datasets = view.groups.map((group) => ({
      label: group, clip: false, pointStyle: charts.SHAPES[charts.tint(group)],
      pointRadius: classes.length > 100 ? 3 : 5.5, pointHoverRadius: 6,
      backgroundColor: charts.groupColor(group), borderWidth: 0,
      data: classes.filter((c) => c.group === group).map((c) => ({ x: at(c), y: c.shift, of: c })),
    }));
    charts.draw(canvas, {
      type: "scatter",
      plugins: [names],
      data: { datasets },
      options: {
        interaction: { mode: "nearest", intersect: true },
        layout: { padding: { right: 12, top: 8 } },
        scales: {
          x: charts.axis("training images of the class (logarithmic)", {
            type: "logarithmic", min: low / (wide ? 1.3 : 1.1), max: high * (wide ? 1.3 : 1.1),
            ticks: {
              autoSkip: !wide, maxRotation: 0,
              callback: (value) => {
                if (wide && value !== 0.5 && !/^[125]0*$/.test(String(value))) return null;
                return Number.isInteger(value) || value === 0.5 ? shown(value) : null;
              },
            },
          }),
          y: charts.axis("added to the logit", { grace: "8%", ticks: { maxTicksLimit: 6, callback: (value) => signed(value, 1) } }),
        },
        plugins: {
          legend: { display: false },
          tooltip: charts.tooltip(({ raw: { of } }) => [
            of.name, `${of.group} · ${whole(of.train_count)} training images`,
            `${isScaled ? `× ${fixed(of.scale, 2)}, ` : ""}${signed(of.shift, 2)}`,
          ]),
        },
      },
    });
  };
  onTheme(drawShifts);

  // --- classes -----------------------------------------------------------------------------------
  const precision = (value) => fixed(value, 1);
  const rows = classes
    .map((c) => ({
      ...c, change: difference(c.after, c.before), change50: difference(c.after_ap50, c.before_ap50),
    }))
    // What deserves the eye comes first: the largest drops, then the rarest.
    .sort((a, b) => (a.change ?? Infinity) - (b.change ?? Infinity) || a.train_count - b.train_count);
  const grid = classTable(rows, [
    // LVIS's "common" is wider than the groups of classifiers.
    ...classColumns().map((one) => (one.field === "group" ? { ...one, minWidth: 106 } : one)),
    column.number("objects", "Objects", whole, { minWidth: 80 }),
    ...(isFixed ? [
      column.number("before", "Before", precision, { minWidth: 72 }),
      column.number("after", "After", precision, { minWidth: 72 }),
      column.change("change", "Δ", { headerSortStartingDir: "asc" }),
      column.number("after_ap50", "AP50 after", precision, { minWidth: 72 }),
      column.change("change50", "Δ AP50", { minWidth: 68, headerSortStartingDir: "asc" }),
      ...(isScaled ? [column.number("scale", "Times", (value) => fixed(value, 2), { minWidth: 72 })] : []),
      column.number("shift", "Shift", (value) => signed(value, 2), { minWidth: 72 }),
    ] : [
      column.number("before", "AP", precision, { minWidth: 88 }),
      column.number("before_ap50", "AP50", precision, { minWidth: 88 }),
    ]),
  ]);
  grid.on("tableBuilt", () => {
    document.getElementById("class-table").setAttribute("aria-label", "Average precision of every class");
  });
  const onlyWorse = document.getElementById("only-worse");
  if (isFixed) onlyWorse.addEventListener("click", () => grid.setHeaderFilterValue("change", "<0"));
  else onlyWorse.remove();

  // --- downloads ---------------------------------------------------------------------------------
  const spread = (name, { value, low, high }) => ({ [name]: value, [`${name}_low`]: low, [`${name}_high`]: high });
  offer({
    methods: () => csv(result.methods.map(({ name, status, freedom, methods, figures, objective, gain, behind, head_change }) => ({
      name, status, freedom, methods: JSON.stringify(methods), objective,
      ...spread("gain", gain), behind: behind.value, behind_standard_error: behind.standard_error,
      ...spread("head_change", head_change), ap: figures.ap, ap50: figures.ap50,
      ...Object.fromEntries(Object.entries(figures.groups).flatMap(([group, { ap, ap50 }]) => [
        [`ap_${group}`, ap], [`ap50_${group}`, ap50],
      ])),
    }))),
    skipped: () => csv(result.skipped),
  });
})();
