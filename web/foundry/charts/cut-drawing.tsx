import type { AxisSize, JobResult } from "../api.js";

type Plan = NonNullable<JobResult["plan"]>;

const MOST_ROWS = 64;
const [ROW, LABEL, WIDTH] = [12, 26, 200];
/** Axes in the order in which they are read. */
const ORDER = ["hidden", "ffn", "heads", "kvHeads"];

const listOf = (size: AxisSize): readonly number[] => (typeof size === "number" ? [size] : size);
const textOf = (size: AxisSize): string => {
  const [low, high] = [Math.min(...listOf(size)), Math.max(...listOf(size))];
  return low === high ? `${low}` : `${low} to ${high}`;
};

/** The model's widths before and after, layer by layer, to scale: boxes of what was, filled with what stays. */
export function CutDrawing({ plan, keptLayers }: { plan: Plan; keptLayers: JobResult["keptLayers"] }) {
  const depth = plan.layers ?? { from: 1, to: 1 };
  const layers = Math.max(...listOf(depth.from));
  const kept = keptLayers ?? Array.from({ length: Math.max(...listOf(depth.to)) }, (_, i) => i);
  const rank = (axis: string) => ORDER.indexOf(axis) >>> 0;
  const axes = Object.keys(plan)
    .filter((axis) => axis !== "layers" && axis !== "vocab")
    .sort((a, b) => rank(a) - rank(b));
  const shown = Math.min(MOST_ROWS, layers);
  const rows = Array.from({ length: shown }, (_, i) => Math.floor((i * layers) / shown));
  return (
    <figure>
      <div class="cuts">
        {axes.map((axis) => (
          <AxisDrawing key={axis} axis={axis} {...(plan[axis] ?? depth)} rows={rows} kept={kept} />
        ))}
      </div>
      <figcaption>
        {`A row for each of ${layers} layers${layers > shown ? ` (${shown} of them drawn)` : ""}; filled is what stays${
          kept.length < layers ? `: ${kept.length} layers` : ""
        }.`}
      </figcaption>
    </figure>
  );
}

/** One size in each layer. @param kept the layers that stay */
function AxisDrawing({
  axis,
  from,
  to,
  rows,
  kept,
}: {
  axis: string;
  from: AxisSize;
  to: AxisSize;
  rows: readonly number[];
  kept: readonly number[];
}) {
  const [before, after] = [listOf(from), listOf(to)];
  const bar = (size: number) => (size / Math.max(...before)) * (WIDTH - LABEL - 2);
  const title = textOf(from) === textOf(to) ? `${axis} ${textOf(from)}` : `${axis} ${textOf(from)} → ${textOf(to)}`;
  return (
    <div>
      <p>{title}</p>
      <svg class="cut" viewBox={`0 0 ${WIDTH} ${rows.length * ROW}`} role="img" aria-label={`${title}, layer by layer`}>
        {rows.map((layer, i) => {
          const now = kept.indexOf(layer);
          const was = before[layer] ?? before[0] ?? 0;
          const is = now < 0 ? 0 : (after[now] ?? after[0] ?? 0);
          return (
            <g key={layer} transform={`translate(0 ${i * ROW})`}>
              <title>{`layer ${layer}: ${axis} ${was} → ${now < 0 ? "cut" : is}`}</title>
              <text x={LABEL - 6} y={ROW - 3} text-anchor="end">
                {i % Math.ceil(rows.length / 16) === 0 ? layer : ""}
              </text>
              <rect x={LABEL} y={1} width={bar(was)} height={ROW - 3} class="gone" />
              <rect x={LABEL} y={1} width={bar(is)} height={ROW - 3} class="kept" />
            </g>
          );
        })}
      </svg>
    </div>
  );
}
