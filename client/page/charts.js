// Line charts of the last minutes, drawn as SVG. With the pointer or the arrow keys a chart tells the
// values of one moment.

const HEIGHT = 140; // in pixels, as all lengths here
const LEFT = 54;
const TOP = 8;
const BOTTOM = 120;
const FEW = 5; // samples of a slot below which its values are points, not a line
const NAMES = ["first", "second", "third"];
const SHORTEST_AGE = 300; // seconds that a chart reaches back at least
const SVG = "http://www.w3.org/2000/svg";

const KINDS = [
  {
    title: "Requests per second",
    series: [["all", "requests_per_second"], ["server faults", "failed_per_second"], ["client errors", "client_errors_per_second"]],
    show: (value) => rounded(value),
  },
  {
    title: "Generated tokens per second",
    series: [["tokens", "tokens_per_second"]],
    show: (value) => rounded(value),
  },
  {
    title: "Latency of answers",
    series: [["median", "latency_p50"], ["95 %", "latency_p95"]],
    samples: "answers",
    show: (value) => seconds(value),
  },
  {
    title: "Time to first event of streams",
    series: [["median", "first_event_p50"], ["95 %", "first_event_p95"]],
    samples: "streams",
    show: (value) => seconds(value),
  },
];

export function charts(parent) {
  const all = KINDS.map((kind) => chart(parent, kind));
  return (points) => all.forEach((draw) => draw(points));
}

function chart(parent, { title, series, show, samples }) {
  const figure = parent.appendChild(document.createElement("figure"));
  const caption = figure.appendChild(document.createElement("figcaption"));
  caption.appendChild(document.createElement("b")).textContent = title;
  const keys = series.map(([name], i) => {
    const key = caption.appendChild(document.createElement("span"));
    key.className = `key ${NAMES[i]}`;
    return (value) => (key.textContent = `${name} ${value === null || value === undefined ? "–" : show(value)}`);
  });
  const svg = figure.appendChild(node("svg", { class: "chart", role: "img", tabindex: 0 }));
  let points = [];
  let cursor = null; // index into points, or null for the newest

  function draw() {
    const at = points[cursor ?? points.length - 1];
    series.forEach(([, field], i) => keys[i](at?.[field]));
    const top = ceiling(points.flatMap((point) => series.map(([, field]) => point[field] ?? 0)));
    const right = svg.clientWidth - 2;
    const x = (point) => right - ((right - LEFT) * point.age) / oldest();
    const y = (value) => BOTTOM - ((BOTTOM - TOP) * value) / top;
    const parts = [0, top / 2, top].flatMap((value) => [
      node("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
      label(LEFT - 5, y(value) + 4, "end", show(value)),
    ]);
    parts.push(label(LEFT, HEIGHT - 4, "start", `${Math.round(oldest() / 60)} min ago`), label(right, HEIGHT - 4, "end", "now"));
    series.forEach(([, field], i) => {
      const few = (point) => samples !== undefined && point[samples] < FEW;
      parts.push(node("path", { class: NAMES[i], d: line(points.map((p) => (few(p) ? { ...p, [field]: null } : p)), field, x, y) }));
      for (const point of points.filter((each) => few(each) && each[field] !== null)) {
        parts.push(node("circle", { class: NAMES[i], cx: x(point), cy: y(point[field]), r: 2 }));
      }
    });
    if (cursor !== null && at) {
      parts.push(node("line", { class: "cursor", x1: x(at), x2: x(at), y1: TOP, y2: BOTTOM }));
    }
    svg.replaceChildren(...parts);
    const when = cursor === null ? "now" : `${Math.round(at?.age ?? 0)} seconds ago`;
    const values = series.map(([name, field]) => `${name} ${at?.[field] == null ? "none" : show(at[field])}`);
    svg.setAttribute("aria-label", `${title}, ${when}: ${values.join(", ")}`);
  }

  function oldest() {
    return Math.max(SHORTEST_AGE, ...points.map((each) => each.age));
  }

  function point(to) {
    cursor = to === null || !points.length ? null : Math.min(points.length - 1, Math.max(0, to));
    draw();
  }

  svg.addEventListener("pointermove", (event) => {
    const share = (event.offsetX - LEFT) / (svg.clientWidth - 2 - LEFT);
    point(nearest(points, (1 - share) * oldest()));
  });
  new ResizeObserver(draw).observe(svg);
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("blur", () => point(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -15, PageDown: 15 }[event.key];
    if (!step) return;
    event.preventDefault();
    point((cursor ?? points.length - 1) + step);
  });
  return (fresh) => {
    points = fresh;
    point(cursor);
  };
}

function line(points, field, x, y) {
  let path = "";
  let pen = "M"; // lifted where there is no value
  for (const point of points) {
    if (point[field] === null) {
      pen = "M";
      continue;
    }
    const at = `${x(point).toFixed(1)} ${y(point[field]).toFixed(1)}`;
    path += pen === "M" ? `M${at}h.1` : `L${at}`; // the dot shows a value without neighbours
    pen = "L";
  }
  return path;
}

function nearest(points, age) {
  let best = 0;
  points.forEach((point, i) => {
    if (Math.abs(point.age - age) < Math.abs(points[best].age - age)) best = i;
  });
  return best;
}

function ceiling(values) {
  // the next of 1, 2, 5, 10, …
  const most = Math.max(...values, 0);
  if (!most) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [1, 2, 5, 10].find((step) => step * power >= most);
}

function rounded(value) {
  return value >= 100 || Number.isInteger(value) ? Math.round(value).toLocaleString() : Number(value.toPrecision(2)).toString();
}

function seconds(value) {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${Number(value.toPrecision(2))} s`;
}

function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function label(x, y, anchor, text) {
  const made = node("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}
