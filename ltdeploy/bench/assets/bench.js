// The picture of a benchmark: speed against accuracy.
(() => {
  "use strict";
  const { result, color, fixed, csv, offer, onTheme } = report;
  const { SHAPES, draw, axis, tooltip } = charts;
  const GAP_PX = 9, NARROW_PX = 480, ARROW_PX = 7;
  const REACH = 1.5; // times the fastest mark: what a bar may add to the axis before it is cut
  const measured = result.contestants.filter((one) => one.speeds.length);

  const flat = (name, spread) => ({
    [name]: spread?.value ?? null, [`${name}_low`]: spread?.low ?? null, [`${name}_high`]: spread?.high ?? null,
  });
  offer({
    speeds: () => csv(measured.flatMap((one) => one.speeds.map((speed) => ({
      label: one.label, bundle: one.bundle, precision: one.precision, engine: one.engine, runs_on: one.runs_on,
      ...speed, ...flat("p50_ms", speed.p50_ms), ...flat("images_per_s", speed.images_per_s), ...flat("ratio", speed.ratio),
    })))),
  });

  const canvas = document.getElementById("picture");
  if (!canvas) return;
  const cell = document.getElementById("picture-cell"), group = document.getElementById("picture-group");
  const models = [...new Set(measured.map((one) => one.bundle))];
  const engines = [...new Set(measured.map((one) => one.engine))];
  const paint = (one) => color(`group-${models.indexOf(one.bundle) % 3}`);

  const pointsOf = () => {
    const [batch, threads] = cell.value.split(",").map(Number);
    return measured.flatMap((one) => {
      const speed = one.speeds.find((s) => s.batch === batch && s.threads === threads);
      const accuracy = group.value === "balanced" ? one.accuracy?.balanced : one.accuracy?.groups[group.value];
      if (!speed || !accuracy) return [];
      return [{ x: speed.images_per_s.value, y: accuracy.value, one, speed: speed.images_per_s, accuracy }];
    });
  };

  // Both intervals of every mark, and dotted lines through the first.
  const bars = (points) => ({
    id: "bars",
    beforeDatasetsDraw({ ctx, chartArea, scales: { x, y } }) {
      const line = (x0, y0, x1, y1) => { ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke(); };
      ctx.save();
      if (points[0]?.one === measured[0]) {
        const left = x.getPixelForValue(points[0].x), top = y.getPixelForValue(points[0].y);
        ctx.strokeStyle = color("soft"); ctx.setLineDash([2, 4]);
        line(left, chartArea.top, left, chartArea.bottom);
        line(chartArea.left, top, chartArea.right, top);
        ctx.setLineDash([]);
      }
      ctx.lineWidth = 1.75;
      for (const { one, speed, accuracy, ...at } of points) {
        const px = x.getPixelForValue(at.x), py = y.getPixelForValue(at.y);
        const [low, high] = [y.getPixelForValue(accuracy.low), y.getPixelForValue(accuracy.high)];
        ctx.strokeStyle = paint(one);
        line(px, low, px, high); line(px - 4, low, px + 4, low); line(px - 4, high, px + 4, high);
        const end = Math.min(x.getPixelForValue(speed.high), chartArea.right);
        line(x.getPixelForValue(speed.low), py, end, py);
        if (speed.high > x.max) {
          ctx.fillStyle = paint(one);
          ctx.beginPath(); ctx.moveTo(end + ARROW_PX, py); ctx.lineTo(end, py - ARROW_PX); ctx.lineTo(end, py + ARROW_PX); ctx.fill();
        }
      }
      ctx.restore();
    },
  });

  // A name stands on the first side of its mark where it hides no other mark or name.
  const names = (points) => ({
    id: "names",
    afterDatasetsDraw({ ctx, chartArea, scales: { x, y } }) {
      const at = points.map((p) => [x.getPixelForValue(p.x), y.getPixelForValue(p.y)]);
      const taken = at.map(([px, py]) => [px - 6, py - 6, px + 6, py + 6]);
      const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
      const outside = (box) => Math.max(0, chartArea.left - box[0], box[2] - chartArea.right)
        + Math.max(0, chartArea.top - box[1], box[3] - chartArea.bottom);
      const size = chartArea.width < NARROW_PX ? 10 : 12, line = size + 2;
      const distance = ([px, py], b) => Math.hypot(px - Math.min(Math.max(px, b[0]), b[2]), py - Math.min(Math.max(py, b[1]), b[3]));
      ctx.save();
      ctx.font = `600 ${size}px system-ui, sans-serif`; ctx.fillStyle = color("ink"); ctx.textBaseline = "top";
      // Bars run behind a name, not through it.
      ctx.strokeStyle = color("paper"); ctx.lineWidth = 4; ctx.lineJoin = "round";
      points.forEach((point, i) => {
        const lines = point.one.label.split(" · "), [px, py] = at[i];
        const width = Math.max(...lines.map((text) => ctx.measureText(text).width)), height = line * lines.length;
        const box = (left, top) => [left, top, left + width, top + height];
        const [right, left] = [px + GAP_PX, px - GAP_PX - width];
        const middle = px - width / 2;
        const places = [5, 24, 44, 64, 84, 104, 124, 144].flatMap((away) => [right, left, middle].flatMap((side) => [box(side, py + away), box(side, py - away - height)]));
        const doubtful = (b) => at.some((other, k) => k !== i && distance(other, b) < distance(at[i], b) + 3);
        const cost = (b, place) => 10 * outside(b) + 200 * taken.filter((other) => meets(b, other)).length + 40 * doubtful(b) + place;
        const costs = places.map(cost);
        const best = places[costs.indexOf(Math.min(...costs))];
        taken.push(best);
        // Where it could be another mark's, a thin line leads from a name to its own.
        if (doubtful(best) || distance(at[i], best) > 2 * GAP_PX) {
          const [nx, ny] = [Math.min(Math.max(px, best[0]), best[2]), Math.min(Math.max(py, best[1]), best[3])];
          ctx.save();
          ctx.strokeStyle = color("ink"); ctx.lineWidth = 1;
          ctx.beginPath(); ctx.moveTo(px, py); ctx.lineTo(nx, ny); ctx.stroke();
          ctx.restore();
        }
        for (const paint of ["strokeText", "fillText"]) lines.forEach((text, row) => ctx[paint](text, best[0], best[1] + row * line));
      });
      ctx.restore();
    },
  });

  const spread = ({ value, low, high }, digits) => `${fixed(value, digits)} (${fixed(low, digits)} … ${fixed(high, digits)})`;
  const words = ({ one, speed, accuracy }) => [one.label, `${spread(speed, 1)} images/s`, `${group.value}: ${spread(accuracy, 1)} %`];
  const show = () => {
    const points = pointsOf();
    const ends = points.flatMap(({ accuracy }) => [accuracy.low, accuracy.high]);
    const room = 0.12 * (Math.max(...ends) - Math.min(...ends)) || 1;
    const most = (end) => Math.max(...points.map(({ speed }) => speed[end]));
    const fastest = Math.min(most("high"), REACH * most("value"));
    canvas.setAttribute("aria-label", `Speed against ${result.measure} at ${cell.selectedOptions[0].text}. `
      + points.map((point) => words(point).join(", ")).join("; "));
    draw(canvas, {
      type: "scatter",
      plugins: [bars(points), names(points)],
      data: { datasets: points.map((point) => ({
        label: point.one.label, data: [point], pointStyle: SHAPES[engines.indexOf(point.one.engine) % 3],
        pointRadius: 6, pointHoverRadius: 7, backgroundColor: paint(point.one), borderColor: color("paper"), borderWidth: 1.5, clip: false,
      })) },
      options: {
        layout: { padding: { right: 12, top: 8 } },
        scales: {
          x: axis("images per second", { min: 0, max: fastest * 1.06, ticks: { includeBounds: false } }),
          y: axis(`${result.measure} of ${group.value}, %`, { min: Math.max(0, Math.min(...ends) - room), max: Math.min(100, Math.max(...ends) + room),
            ticks: { includeBounds: false } }),
        },
        plugins: { legend: { display: false }, tooltip: tooltip(({ raw }) => words(raw)) },
      },
    });
  };
  for (const choice of [cell, group]) choice.addEventListener("change", show);
  onTheme(show);
})();
