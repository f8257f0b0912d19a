// The picture of a precision: speed against what a group loses, a mark for each division tried.
(() => {
  "use strict";
  const { result, view, color, isNumber, fixed, signed, csv, offer, onTheme } = report;
  const { draw, axis, tooltip } = charts;
  const { trials, gate, damage } = result.lowering;
  const LOOKS = { pass: ["good", "circle"], inconclusive: ["wait", "rect"], fail: ["bad", "triangle"] };
  const FONT_PX = 13, GAP_PX = 11, CAP_PX = 4;
  const canvas = document.getElementById("picture"), group = document.getElementById("picture-group");

  offer({
    trials: () => csv(trials.map(({ restored, groups, ...row }) => ({
      layers_restored: restored.length, ...row,
      ...Object.fromEntries(Object.entries(groups).flatMap(([name, figures]) =>
        Object.entries(figures).map(([key, value]) => [`${name}_${key}`, value]))),
      restored: restored.join(" "),
    }))),
    damage: () => csv(damage.map((one, place) => ({
      rank: place + 1, ...one, restored: trials.find((trial) => trial.chosen).restored.includes(one.layer),
    }))),
  });

  const layers = (count) => (count === 1 ? "1 layer in float32" : `${count || "no"} layers in float32`);
  const words = ({ trial, figures }) => [
    `${layers(trial.restored.length)}${trial.chosen ? ", chosen" : ""}`,
    `${fixed(trial.speed, 2)} × as fast`,
    `${group.value} ${signed(figures.difference, 2)} points (${signed(figures.ci_low, 2)} … ${signed(figures.ci_high, 2)})`,
    `gate: ${{ pass: "pass", fail: "fail", inconclusive: "undecided" }[trial.verdict]}`,
  ];
  const pointsOf = () => trials.flatMap((trial) => {
    const figures = trial.groups[group.value];
    return isNumber(figures?.difference) ? [{ x: trial.speed, y: figures.difference, trial, figures }] : [];
  });

  // A graph that lost very much would press all others into a line: it stands at the lower edge.
  const floorOf = (points) => {
    const low = ({ figures, y }) => figures.ci_low ?? y;
    const lowest = Math.min(-2 * gate.margin, ...points.map(low));
    if (lowest >= -6 * gate.margin) return lowest;
    return Math.min(-3 * gate.margin, ...points.filter(({ trial }) => trial.verdict !== "fail").map(low));
  };

  const ground = {
    id: "ground",
    beforeDatasetsDraw({ ctx, chartArea: { left, right, bottom }, scales: { y } }) {
      const level = (value, paint, dash) => {
        const at = y.getPixelForValue(value);
        ctx.strokeStyle = color(paint); ctx.lineWidth = 1.25; ctx.setLineDash(dash);
        ctx.beginPath(); ctx.moveTo(left, at); ctx.lineTo(right, at); ctx.stroke();
        return at;
      };
      ctx.save();
      level(0, "soft", [2, 4]);
      const at = level(-gate.margin, "bad", [5, 4]);
      ctx.fillStyle = color("bad"); ctx.globalAlpha = 0.1;
      ctx.fillRect(left, at, right - left, bottom - at);
      ctx.restore();
    },
  };
  const whiskers = (points) => ({
    id: "whiskers",
    beforeDatasetsDraw({ ctx, chartArea, scales: { x, y } }) {
      const line = (x0, y0, x1, y1) => { ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke(); };
      ctx.save();
      ctx.beginPath(); ctx.rect(chartArea.left - CAP_PX, chartArea.top, chartArea.width + 2 * CAP_PX, chartArea.height); ctx.clip();
      ctx.lineWidth = 1.75;
      for (const { x: speed, trial, figures } of points) {
        if (!isNumber(figures.ci_low) || !isNumber(figures.ci_high)) continue;
        const at = x.getPixelForValue(speed);
        const ends = [figures.ci_low, figures.ci_high].map((end) => y.getPixelForValue(end));
        ctx.strokeStyle = color(LOOKS[trial.verdict][0]);
        line(at, ends[0], at, ends[1]);
        for (const end of ends) line(at - CAP_PX, end, at + CAP_PX, end);
      }
      ctx.restore();
    },
  });

  // A name stands on the side of its mark where it hides the fewest marks, whiskers and names.
  const names = (points, floor) => ({
    id: "names",
    afterDatasetsDraw({ ctx, chartArea, scales: { x, y } }) {
      const at = points.map((point) => [x.getPixelForValue(point.x), y.getPixelForValue(point.shown)]);
      const taken = at.map(([px, py]) => [px - 7, py - 7, px + 7, py + 7]);
      points.forEach(({ figures }, i) => taken.push(
        [at[i][0] - 2, y.getPixelForValue(figures.ci_high ?? 0), at[i][0] + 2, y.getPixelForValue(figures.ci_low ?? 0)]));
      const start = [x.getPixelForValue(1), y.getPixelForValue(0)];
      taken.push([start[0] - 7, start[1] - 7, start[0] + 7, start[1] + 7]);
      const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
      const outside = (box) => Math.max(0, chartArea.left - box[0], box[2] - chartArea.right)
        + Math.max(0, chartArea.top - box[1], box[3] - chartArea.bottom);
      ctx.save();
      ctx.fillStyle = color("ink"); ctx.textBaseline = "top";
      points.forEach(({ trial, y: value }, i) => {
        const [px, py] = at[i];
        const beyond = value < floor ? ` ↓ ${signed(value, 1)}` : "";
        const text = `${trials.length > 1 ? trial.restored.length : ""}${trial.chosen ? " chosen" : ""}${beyond}`.trim();
        ctx.font = `${trial.chosen ? 700 : 500} ${FONT_PX}px system-ui, sans-serif`;
        const width = ctx.measureText(text).width;
        const [right, left, level] = [px + GAP_PX, px - GAP_PX - width, py - FONT_PX / 2];
        const places = [0, -1, 1, -2, 2].flatMap((step) => [right, left].map((side) => [side, level + 14 * step]))
          .map(([a, b]) => [a, b, a + width, b + FONT_PX]);
        const cost = (box) => 3 * outside(box) + 50 * taken.filter((other) => meets(box, other)).length;
        const best = places.reduce((a, b) => (cost(b) < cost(a) ? b : a));
        taken.push(best);
        ctx.fillText(text, best[0], best[1]);
      });
      ctx.restore();
    },
  });

  const show = () => {
    const points = pointsOf(), floor = floorOf(points);
    for (const point of points) point.shown = Math.max(point.y, floor);
    const top = Math.max(gate.margin / 2, ...points.map(({ figures, y }) => figures.ci_high ?? y));
    const room = 0.08 * (top - floor);
    const speeds = [1, ...points.map((point) => point.x)];
    const aside = 0.1 * (Math.max(...speeds) - Math.min(...speeds)) || 0.1;
    canvas.setAttribute("aria-label", `Speed against the difference of ${group.value}, margin ${signed(-gate.margin, 2)} points. `
      + points.map((point) => words(point).join(", ")).join("; "));
    draw(canvas, {
      type: "scatter",
      plugins: [ground, whiskers(points), names(points, floor)],
      data: { datasets: [
        ...points.map((point) => {
          const [paint, pointStyle] = LOOKS[point.trial.verdict];
          const size = point.trial.chosen ? 8 : 6.5;
          return {
            data: [{ ...point, y: point.shown }], pointStyle, pointRadius: size, pointHoverRadius: size + 1, clip: false,
            backgroundColor: color(paint), borderColor: color(point.trial.chosen ? "ink" : "paper"), borderWidth: point.trial.chosen ? 2.5 : 1.5,
          };
        }),
        { data: [{ x: 1, y: 0 }], pointRadius: 5.5, pointHoverRadius: 6, clip: false,
          backgroundColor: color("paper"), borderColor: color("before"), borderWidth: 2 },
        { data: points.map((point) => ({ x: point.x, y: point.shown })), showLine: true, pointRadius: 0, pointHitRadius: 0,
          borderColor: color("line"), borderWidth: 1.5 },
      ] },
      options: {
        interaction: { mode: "nearest", intersect: true },
        layout: { padding: { right: 14, top: 8 } },
        scales: {
          x: axis("times as fast as the float32 graph", {
            min: Math.min(...speeds) - aside, max: Math.max(...speeds) + aside,
            ticks: { includeBounds: false, maxRotation: 0, callback: (value) => `${Number(value.toFixed(3))} ×` },
          }),
          y: axis(`difference of ${group.value}, points`, {
            min: floor - room, max: top + room,
            ticks: { includeBounds: false, callback: (value) => signed(value, Number.isInteger(value) ? 0 : 1) },
          }),
        },
        plugins: {
          legend: { display: false },
          tooltip: tooltip(({ raw }) => (raw.trial ? words(raw) : "float32 graph")),
        },
      },
    });
  };
  group.addEventListener("change", show);
  onTheme(show);
})();
