import type { AxisSize, JobResult } from "../api.js";

type Plan = NonNullable<JobResult["plan"]>;

const MAX_ROWS = 64;
/** Height of a row, width of its label, and width of the drawing. */
const [ROW, LABEL, WIDTH] = [12, 26, 200];
/** Axes that come first, in this order. */
const ORDER = ["hidden", "ffn", "heads", "kvHeads"];

const sizesOf = (size: AxisSize): readonly number[] => (typeof size === "number" ? [size] : size);
const textOf = (size: AxisSize): string => {
  const [low, high] = [Math.min(...sizesOf(size)), Math.max(...sizesOf(size))];
  return low === high ? `${low}` : `${low} to ${high}`;
};

/** A model's sizes before and after, layer by layer and to scale. */
export function CutDrawing({ plan, keptLayers }: { plan: Plan; keptLayers: JobResult["keptLayers"] }) {
  const depth = plan.layers ?? { from: 1, to: 1 };
  const layers = Math.max(...sizesOf(depth.from));
  const kept = keptLayers ?? Array.from({ length: Math.max(...sizesOf(depth.to)) }, (_, i) => i);
  const rank = (axis: string) => ORDER.indexOf(axis) >>> 0;
  const axes = Object.keys(plan)
    .filter((axis) => axis !== "layers" && axis !== "vocab")
    .sort((a, b) => rank(a) - rank(b));
  const shown = Math.min(MAX_ROWS, layers);
  const rows = Array.from({ length: shown }, (_, i) => Math.floor((i * layers) / shown));
  return (
    <figure>
      <div class="cuts">
        {axes.map((axis) => (
          <AxisDrawing key={axis} axis={axis} {...(plan[axis] ?? depth)} rows={rows} kept={kept} />
        ))}
      </div>
      <figcaption>
        {layers > shown ? `One row per layer (${shown} of ${layers} are drawn). ` : "One row per layer. "}
        {kept.length < layers
          ? `The filled parts are kept: ${kept.length} of ${layers} layers.`
          : "The filled parts are kept."}
      </figcaption>
    </figure>
  );
}

/** One size in each layer. @param kept indices of the layers that are kept */
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
  const [before, after] = [sizesOf(from), sizesOf(to)];
  const bar = (size: number) => (size / Math.max(...before)) * (WIDTH - LABEL - 2);
  const title = textOf(from) === textOf(to) ? `${axis} ${textOf(from)}` : `${axis} ${textOf(from)} → ${textOf(to)}`;
  return (
    <div>
      <p>{title}</p>
      <svg class="cut" viewBox={`0 0 ${WIDTH} ${rows.length * ROW}`} role="img" aria-label={`${title}, layer by layer`}>
        {rows.map((layer, i) => {
          const newIndex = kept.indexOf(layer);
          const oldSize = before[layer] ?? before[0] ?? 0;
          const newSize = newIndex < 0 ? 0 : (after[newIndex] ?? after[0] ?? 0);
          return (
            <g key={layer} transform={`translate(0 ${i * ROW})`}>
              <title>{`layer ${layer}: ${axis} ${oldSize} → ${newIndex < 0 ? "cut" : newSize}`}</title>
              <text x={LABEL - 6} y={ROW - 3} text-anchor="end">
                {i % Math.ceil(rows.length / 16) === 0 ? layer : ""}
              </text>
              <rect x={LABEL} y={1} width={bar(oldSize)} height={ROW - 3} class="gone" />
              <rect x={LABEL} y={1} width={bar(newSize)} height={ROW - 3} class="kept" />
            </g>
          );
        })}
      </svg>
    </div>
  );
}
