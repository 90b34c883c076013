import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Point } from "../api.js";
import { count } from "../format.js";

const HEIGHT = 300;
/** More points than pixels cannot be seen. */
const MAX_POINTS = 1200;

/** As many points as there is room for, and all with a validation loss. */
function thin(points: readonly Point[]): Point[] {
  const every = Math.ceil(points.length / MAX_POINTS);
  return points.filter(
    ({ validationLoss }, i) => i % every === 0 || i === points.length - 1 || validationLoss !== undefined,
  );
}

/** The current value of a colour variable, which differs between light and dark. */
const resolveColour = (name: string): string => {
  const probe = document.createElement("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
};

const formatLoss = (_: uPlot, value: number | null) => (value === null ? "–" : value.toFixed(4));

/** The lines of the chart, over the tokens. Those without values are left out. */
const LINES = [
  { label: "divergence from the teacher", colour: "--accent", style: { width: 2, points: { show: false } } },
  { label: "validation loss", colour: "--good", style: { width: 2, spanGaps: true, points: { size: 6 } } },
  { label: "teacher's loss", colour: "--quiet", style: { width: 1.5, dash: [6, 4], points: { show: false } } },
] as const;

/** The lines that have values, and the chart's data: tokens, then each line's values. */
function rowsOf(points: readonly Point[], teacherLoss: number | undefined) {
  const values = [
    points.map(({ loss }) => Math.max(loss, 1e-6)), // 0 has no logarithm
    points.map(({ validationLoss }) => validationLoss ?? null),
    points.map(() => teacherLoss ?? null),
  ];
  const lines = LINES.flatMap((line, i) => (values[i]?.some((value) => value !== null) ? [{ line, i }] : []));
  const data: uPlot.AlignedData = [points.map(({ tokens }) => tokens), ...lines.map(({ i }) => values[i] ?? [])];
  return { lines: lines.map(({ line }) => line), data };
}

function drawChart(element: HTMLElement, { lines, data }: ReturnType<typeof rowsOf>): uPlot {
  const [text, grid] = [resolveColour("--text"), { stroke: resolveColour("--line"), width: 1 }];
  const axis = { stroke: text, grid, ticks: grid } as const;
  return new uPlot(
    {
      width: element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false }, y: { distr: 3 } },
      axes: [
        { ...axis, label: "tokens", values: (_, values) => values.map((value) => count(value)) },
        {
          ...axis,
          label: "nats per token (log scale)",
          size: 64,
          values: (_, values) => values.map((value) => (value === null ? "" : `${value}`)),
        },
      ],
      series: [
        { label: "tokens", value: (_, value: number | null) => (value === null ? "–" : count(value)) },
        ...lines.map(({ label, colour, style }) => ({
          label,
          stroke: resolveColour(colour),
          value: formatLoss,
          ...style,
        })),
      ] as uPlot.Series[],
      cursor: { drag: { x: true, y: false } },
    },
    data,
    element,
  );
}

/** Whether the user has zoomed in: the zoom is kept while points arrive. */
function isZoomed({ scales, data }: uPlot): boolean {
  const [first, last] = [data[0][0], data[0].at(-1)];
  return (scales.x?.min ?? first) !== first || (scales.x?.max ?? last) !== last;
}

/** The student's divergence from the teacher during training, and its validation loss beside the teacher's. */
export function LossCurve({ points, teacherLoss }: { points: readonly Point[]; teacherLoss: number | undefined }) {
  const element = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot>();
  const isDrawn = points.length > 1;
  const rows = rowsOf(thin(points), teacherLoss);

  useEffect(() => {
    if (!isDrawn || element.current === null) return;
    const container = element.current;
    const draw = () => {
      chart.current?.destroy();
      chart.current = drawChart(container, latest.current);
    };
    draw();
    const resized = new ResizeObserver(() => chart.current?.setSize({ width: container.clientWidth, height: HEIGHT }));
    resized.observe(container);
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

  if (!isDrawn) return <p class="quiet">The curve appears when training starts.</p>;
  const [first, last] = [points[0], points.at(-1)];
  const validated = points.findLast(({ validationLoss }) => validationLoss !== undefined);
  return (
    <figure>
      <div
        ref={element}
        role="img"
        aria-label={`Loss by tokens: ${first?.loss.toFixed(3)} to ${last?.loss.toFixed(3)}`}
      />
      <figcaption>
        {`After ${count(last?.tokens ?? 0)} tokens: ${last?.loss.toFixed(4)} nats per token from the teacher`}
        {validated !== undefined && `, validation loss ${validated.validationLoss?.toFixed(4)}`}
        {teacherLoss !== undefined && `, teacher's loss ${teacherLoss.toFixed(4)}`}.
      </figcaption>
    </figure>
  );
}
