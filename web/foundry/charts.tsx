import type { Candidate, JobResult, Point } from "./api.js";
import { bytes, count } from "./format.js";

/** Maps values onto a length; logarithmic where it says so. */
function scale(values: readonly number[], length: number, logarithmic = false) {
  const of = (value: number) => (logarithmic ? Math.log(Math.max(value, Number.MIN_VALUE)) : value);
  const mapped = values.map(of);
  const [low, high] = [Math.min(...mapped), Math.max(...mapped)];
  return (value: number): number => (high === low ? length / 2 : ((of(value) - low) / (high - low)) * length);
}

const [WIDTH, HEIGHT, LEFT, BOTTOM, PAD] = [560, 300, 56, 40, 14];

/** Those of which none that takes less is expected to lose less. */
function lowest(candidates: readonly Candidate[]): Candidate[] {
  let least = Number.POSITIVE_INFINITY;
  return [...candidates]
    .sort((a, b) => a.memory.totalBytes - b.memory.totalBytes || a.expectedLoss - b.expectedLoss)
    .filter((one) => {
      const better = one.expectedLoss < least;
      if (better) least = one.expectedLoss;
      return better;
    });
}

/** What candidates take beside what they are expected to lose; one is chosen by click or key. */
export function Pareto({
  candidates,
  chosen,
  onChoose,
}: {
  candidates: readonly Candidate[];
  chosen: Candidate | null;
  onChoose: (candidate: Candidate) => void;
}) {
  if (candidates.length === 0) return null;
  const x = scale(
    candidates.map((one) => one.memory.totalBytes),
    WIDTH - LEFT - 2 * PAD,
    true,
  );
  const y = scale(
    candidates.map((one) => one.expectedLoss),
    HEIGHT - BOTTOM - 2 * PAD,
  );
  const at = (one: Candidate) => ({
    cx: LEFT + PAD + x(one.memory.totalBytes),
    cy: HEIGHT - BOTTOM - PAD - y(one.expectedLoss),
  });
  const front = lowest(candidates.filter((one) => one.fits));
  const [least, most] = [Math.min, Math.max].map((pick) => pick(...candidates.map((one) => one.memory.totalBytes)));
  const worst = Math.max(...candidates.map((one) => one.expectedLoss));
  return (
    <div role="radiogroup" aria-label="Candidates: memory and expected loss">
      <svg class="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="presentation">
        <line x1={LEFT} y1={HEIGHT - BOTTOM} x2={WIDTH} y2={HEIGHT - BOTTOM} class="axis" />
        <line x1={LEFT} y1={0} x2={LEFT} y2={HEIGHT - BOTTOM} class="axis" />
        <text x={LEFT + PAD} y={HEIGHT - BOTTOM + 16}>
          {bytes(least ?? 0)}
        </text>
        <text x={WIDTH - 4} y={HEIGHT - BOTTOM + 16} text-anchor="end">
          {bytes(most ?? 0)}
        </text>
        <text x={(LEFT + WIDTH) / 2} y={HEIGHT - 4} text-anchor="middle">
          memory
        </text>
        <text x={LEFT - 6} y={HEIGHT - BOTTOM - PAD} text-anchor="end">
          0
        </text>
        <text x={LEFT - 6} y={PAD + 4} text-anchor="end">
          {worst.toPrecision(2)}
        </text>
        <text
          x={14}
          y={(HEIGHT - BOTTOM) / 2}
          text-anchor="middle"
          transform={`rotate(-90 14 ${(HEIGHT - BOTTOM) / 2})`}
        >
          expected loss, nats
        </text>
        <polyline class="front" points={front.map((one) => `${at(one).cx},${at(one).cy}`).join(" ")} />
        {candidates.map((one) => {
          const label = `${count(one.parameters)} parameters as ${one.kind}: ${bytes(one.memory.totalBytes)}, ${Math.round(one.tokensPerSecond)} tokens/s, ${one.expectedLoss.toPrecision(2)} nats${one.fits ? "" : ", does not fit"}`;
          return (
            // biome-ignore lint/a11y/useSemanticElements: a radio button cannot be drawn in a chart
            <circle
              key={`${one.kind} ${one.parameters}`}
              {...at(one)}
              r={one === chosen ? 8 : 5}
              class={
                one === chosen
                  ? "point chosen"
                  : one.fits
                    ? front.includes(one)
                      ? "point on-front"
                      : "point"
                    : "point unfit"
              }
              role="radio"
              aria-checked={one === chosen}
              aria-label={label}
              aria-disabled={!one.fits}
              tabIndex={front.includes(one) ? 0 : -1}
              onClick={() => one.fits && onChoose(one)}
              onKeyDown={(event) => {
                if (event.key !== "Enter" && event.key !== " ") return;
                event.preventDefault();
                if (one.fits) onChoose(one);
              }}
            >
              <title>{label}</title>
            </circle>
          );
        })}
      </svg>
    </div>
  );
}

/** Of many points as many as there is room for, and those that were validated. */
function thinned(points: readonly Point[]): Point[] {
  const every = Math.ceil(points.length / WIDTH);
  return points.filter(
    ({ validationLoss }, i) => i % every === 0 || i === points.length - 1 || validationLoss !== undefined,
  );
}

/** Losses by tokens: training, and validation where it was measured. */
export function LossCurve({ points: all }: { points: readonly Point[] }) {
  if (all.length < 2) return <p class="quiet">The curve is drawn once training has begun.</p>;
  const points = thinned(all);
  const validated = points.filter((point) => point.validationLoss !== undefined);
  const tokens = points.map((point) => point.tokens);
  const x = scale(tokens, WIDTH - LEFT - 2 * PAD);
  const line = (from: readonly (readonly [number, number])[]) => {
    const y = scale(
      from.map(([, loss]) => loss),
      HEIGHT - BOTTOM - 2 * PAD,
      true,
    );
    return from.map(([at, loss]) => `${LEFT + PAD + x(at)},${HEIGHT - BOTTOM - PAD - y(loss)}`).join(" ");
  };
  const [low, high] = [Math.min, Math.max].map((pick) => pick(...points.map((point) => point.loss)));
  const last = points.at(-1);
  return (
    <figure>
      <svg
        class="chart"
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        role="img"
        aria-label={`Loss by tokens: ${high?.toFixed(3)} down to ${last?.loss.toFixed(3)}`}
      >
        <line x1={LEFT} y1={HEIGHT - BOTTOM} x2={WIDTH} y2={HEIGHT - BOTTOM} class="axis" />
        <line x1={LEFT} y1={0} x2={LEFT} y2={HEIGHT - BOTTOM} class="axis" />
        <text x={LEFT - 6} y={PAD + 4} text-anchor="end">
          {high?.toPrecision(3)}
        </text>
        <text x={LEFT - 6} y={HEIGHT - BOTTOM - PAD + 4} text-anchor="end">
          {low?.toPrecision(3)}
        </text>
        <text x={WIDTH - 4} y={HEIGHT - BOTTOM + 16} text-anchor="end">
          {count(Math.max(...tokens))} tokens
        </text>
        <polyline class="curve" points={line(points.map((point) => [point.tokens, point.loss]))} />
        {validated.length > 1 && (
          <polyline
            class="curve validation"
            points={line(validated.map((point) => [point.tokens, point.validationLoss ?? 0]))}
          />
        )}
      </svg>
      <figcaption>
        Divergence from the teacher: {last?.loss.toFixed(4)} nats a token
        {validated.length > 0 &&
          `; dashed: validation loss, now ${validated.at(-1)?.validationLoss?.toFixed(4)} (own scale)`}
      </figcaption>
    </figure>
  );
}

const MOST_ROWS = 48;

/** The model before and after, to scale: widths as boxes, layers as rows; of many layers, evenly chosen ones. */
export function CutDrawing({
  plan,
  keptLayers,
}: {
  plan: NonNullable<JobResult["plan"]>;
  keptLayers: JobResult["keptLayers"];
}) {
  const [layers, hidden, ffn] = ["layers", "hidden", "ffn"].map((axis) => plan[axis] ?? { from: 1, to: 1 });
  if (layers === undefined || hidden === undefined || ffn === undefined) return null;
  const shown = Math.min(MOST_ROWS, layers.from);
  const rows = Array.from({ length: shown }, (_, i) => Math.floor((i * layers.from) / shown));
  const kept = (layer: number) => keptLayers?.includes(layer) ?? layer < layers.to;
  const widest = Math.max(hidden.from, ffn.from);
  const [row, width] = [14, 240];
  const bar = (size: number) => (size / widest) * width;
  return (
    <figure>
      <svg
        class="chart cut"
        viewBox={`0 0 560 ${shown * row + 24}`}
        role="img"
        aria-label={Object.entries(plan)
          .map(([axis, { from, to }]) => `${axis} ${from} to ${to}`)
          .join(", ")}
      >
        {[hidden, ffn].map((size, column) => (
          <g key={column} transform={`translate(${column * 290} 0)`}>
            <text x={0} y={12}>
              {column === 0 ? `hidden ${hidden.from} → ${hidden.to}` : `FFN ${ffn.from} → ${ffn.to}`}
            </text>
            {rows.map((layer, i) => (
              <g key={layer}>
                <title>{`layer ${layer}${kept(layer) ? "" : ", cut"}`}</title>
                <rect x={0} y={20 + i * row} width={bar(size.from)} height={row - 3} class="gone" />
                {kept(layer) && <rect x={0} y={20 + i * row} width={bar(size.to)} height={row - 3} class="kept" />}
              </g>
            ))}
          </g>
        ))}
      </svg>
      <figcaption>
        {`${layers.from === layers.to ? `${layers.from} layers, all kept` : `layers ${layers.from} → ${layers.to}`}${layers.from > shown ? `, ${shown} of them drawn` : ""}; filled: what stays`}
      </figcaption>
    </figure>
  );
}
