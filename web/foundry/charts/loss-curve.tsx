import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Point } from "../api.js";
import { count } from "../format.js";

const HEIGHT = 300;
/** More points than there are pixels are not seen. */
const MOST_POINTS = 1200;

/** Of many points as many as there is room for, and those that were validated. */
function thinned(points: readonly Point[]): Point[] {
  const every = Math.ceil(points.length / MOST_POINTS);
  return points.filter(
    ({ validationLoss }, i) => i % every === 0 || i === points.length - 1 || validationLoss !== undefined,
  );
}

/** What a colour of the style sheet is now, in light or dark. */
const colour = (name: string): string => {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

const shown = (_: uPlot, value: number | null) => (value === null ? "–" : value.toFixed(4));

/** What is drawn over the tokens: whatever has numbers. */
const LINES = [
  { label: "from the teacher", colour: "--accent", style: { width: 2, points: { show: false } } },
  { label: "validation loss", colour: "--good", style: { width: 2, spanGaps: true, points: { size: 6 } } },
  { label: "teacher's loss", colour: "--quiet", style: { width: 1.5, dash: [6, 4], points: { show: false } } },
] as const;

/** Tokens and the numbers of each line, where it has any. */
function rowsOf(points: readonly Point[], teacherLoss: number | undefined) {
  const values = [
    points.map(({ loss }) => Math.max(loss, 1e-6)), // logarithms have no 0
    points.map(({ validationLoss }) => validationLoss ?? null),
    points.map(() => teacherLoss ?? null),
  ];
  const lines = LINES.flatMap((line, i) => (values[i]?.some((value) => value !== null) ? [{ line, i }] : []));
  const data: uPlot.AlignedData = [points.map(({ tokens }) => tokens), ...lines.map(({ i }) => values[i] ?? [])];
  return { lines: lines.map(({ line }) => line), data };
}

function chartOf(at: HTMLElement, { lines, data }: ReturnType<typeof rowsOf>): uPlot {
  const [text, grid] = [colour("--text"), { stroke: colour("--line"), width: 1 }];
  const axis = { stroke: text, grid, ticks: grid } as const;
  return new uPlot(
    {
      width: at.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [
        { ...axis, label: "tokens", values: (_, values) => values.map((value) => count(value)) },
        {
          ...axis,
          label: "nats a token (logarithmic)",
          size: 64,
          values: (_, values) => values.map((value) => (value === null ? "" : `${value}`)),
        },
      ],
      series: [
        { label: "tokens", value: (_, value: number | null) => (value === null ? "–" : count(value)) },
        ...lines.map(({ label, colour: name, style }) => ({ label, stroke: colour(name), value: shown, ...style })),
      ] as uPlot.Series[],
      cursor: { drag: { x: true, y: false } },
    },
    data,
    at,
  );
}

/** Whether a part of the tokens was chosen to be looked at: it stays while more come. */
function isZoomed({ scales, data }: uPlot): boolean {
  const [first, last] = [data[0][0], data[0].at(-1)];
  return (scales.x?.min ?? first) !== first || (scales.x?.max ?? last) !== last;
}

/** How a student learns: its distance from the teacher, and losses on validation data beside the teacher's own. */
export function LossCurve({ points, teacherLoss }: { points: readonly Point[]; teacherLoss: number | undefined }) {
  const at = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot>();
  const isDrawn = points.length > 1;
  const drawn = thinned(points);
  const rows = rowsOf(drawn, teacherLoss);

  useEffect(() => {
    if (!isDrawn || at.current === null) return;
    const place = at.current;
    const draw = () => {
      chart.current?.destroy();
      chart.current = chartOf(place, latest.current);
    };
    draw();
    const resized = new ResizeObserver(() => chart.current?.setSize({ width: place.clientWidth, height: HEIGHT }));
    resized.observe(place);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", draw);
      chart.current?.destroy();
      chart.current = undefined;
    };
  }, [isDrawn, rows.lines.length]);
  const latest = useRef(rows);
  latest.current = rows;
  useEffect(() => chart.current?.setData(rows.data, !isZoomed(chart.current)), [points, teacherLoss]);

  if (!isDrawn) return <p class="quiet">The curve is drawn once training has begun.</p>;
  const [first, last] = [points[0], points.at(-1)];
  const validated = points.findLast(({ validationLoss }) => validationLoss !== undefined);
  return (
    <figure>
      <div ref={at} role="img" aria-label={`Loss by tokens: ${first?.loss.toFixed(3)} to ${last?.loss.toFixed(3)}`} />
      <figcaption>
        {`After ${count(last?.tokens ?? 0)} tokens ${last?.loss.toFixed(4)} nats a token from the teacher`}
        {validated !== undefined && `, validation loss ${validated.validationLoss?.toFixed(4)}`}
        {teacherLoss !== undefined && `; the teacher's own is ${teacherLoss.toFixed(4)}`}.
      </figcaption>
    </figure>
  );
}
