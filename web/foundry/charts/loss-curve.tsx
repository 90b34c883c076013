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

/** Rows of the chart: tokens, distance from the teacher, validation loss, and the teacher's own. */
function rowsOf(points: readonly Point[], teacherLoss: number | undefined): uPlot.AlignedData {
  const of = (value: (point: Point) => number | null | undefined) => points.map((point) => value(point) ?? null);
  return [
    points.map(({ tokens }) => tokens),
    of(({ loss }) => Math.max(loss, 1e-6)),
    of(({ validationLoss }) => validationLoss),
    of(() => teacherLoss),
  ];
}

const hasNumbers = (row: uPlot.AlignedData[number] | undefined): boolean =>
  row !== undefined && [...row].some((value) => value !== null);

function chartOf(at: HTMLElement, data: uPlot.AlignedData): uPlot {
  const [text, line] = [colour("--text"), colour("--line")];
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } } as const;
  const shown = (_: uPlot, value: number | null) => (value === null ? "–" : value.toFixed(4));
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
        { label: "from the teacher", stroke: colour("--accent"), width: 2, points: { show: false }, value: shown },
        {
          label: "validation loss",
          show: hasNumbers(data[2]),
          stroke: colour("--good"),
          width: 2,
          spanGaps: true,
          points: { size: 6 },
          value: shown,
        },
        {
          label: "teacher's loss",
          show: hasNumbers(data[3]),
          stroke: colour("--quiet"),
          width: 1.5,
          dash: [6, 4],
          points: { show: false },
          value: shown,
        },
      ],
      cursor: { drag: { x: true, y: false } },
    },
    data,
    at,
  );
}

/** How a student learns: its distance from the teacher, and losses on validation data beside the teacher's own. */
export function LossCurve({ points, teacherLoss }: { points: readonly Point[]; teacherLoss: number | undefined }) {
  const at = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot>();
  const isDrawn = points.length > 1;
  const drawn = thinned(points);
  const data = rowsOf(drawn, teacherLoss);

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
  }, [isDrawn, hasNumbers(data[2]), hasNumbers(data[3])]);
  const latest = useRef(data);
  latest.current = data;
  useEffect(() => chart.current?.setData(data), [points, teacherLoss]);

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
