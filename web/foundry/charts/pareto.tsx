import type { Candidate } from "../api.js";
import { bytes, count } from "../format.js";

/** Maps values onto a length; logarithmic where it says so. */
function scale(values: readonly number[], length: number, logarithmic = false) {
  const of = (value: number) => (logarithmic ? Math.log(Math.max(value, Number.MIN_VALUE)) : value);
  const mapped = values.map(of);
  const [low, high] = [Math.min(...mapped), Math.max(...mapped)];
  return (value: number): number => (high === low ? length / 2 : ((of(value) - low) / (high - low)) * length);
}

/** How near to a point a click must be: a finger's width on a phone. */
const REACH = 40;
const [WIDTH, HEIGHT, LEFT, BOTTOM, PAD] = [560, 300, 56, 40, 14];

/** Those of which none that takes less is expected to lose less, the smallest first. */
export function lowest(candidates: readonly Candidate[]): Candidate[] {
  let least = Number.POSITIVE_INFINITY;
  return [...candidates]
    .sort((a, b) => a.memory.totalBytes - b.memory.totalBytes || a.expectedLoss - b.expectedLoss)
    .filter((one) => {
      const better = one.expectedLoss < least;
      if (better) least = one.expectedLoss;
      return better;
    });
}

/** What a candidate is, in a line. */
export const describeCandidate = (one: Candidate): string =>
  `${count(one.parameters)} parameters (${Math.round(100 * one.share)} %) as ${one.kind}: ${bytes(one.memory.totalBytes)}, ${Math.round(one.tokensPerSecond)} tokens/s, ${one.expectedLoss.toPrecision(2)} nats`;

/** What candidates take beside what they are expected to lose. A click chooses one; keys choose in the list beside it. */
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
  const [right, top] = [WIDTH - LEFT - 2 * PAD, HEIGHT - BOTTOM - 2 * PAD];
  const [takes, loses] = [candidates.map((one) => one.memory.totalBytes), candidates.map((one) => one.expectedLoss)];
  const [x, y] = [scale(takes, right, true), scale(loses, top)];
  const at = (one: Candidate) => ({
    cx: LEFT + PAD + x(one.memory.totalBytes),
    cy: HEIGHT - BOTTOM - PAD - y(one.expectedLoss),
  });
  const front = lowest(candidates.filter((one) => one.fits));
  const classOf = (one: Candidate): string => {
    if (one === chosen) return "point chosen";
    if (!one.fits) return "point unfit";
    return front.includes(one) ? "point on-front" : "point";
  };
  const choose = (event: MouseEvent & { readonly currentTarget: SVGSVGElement }) => {
    const matrix = event.currentTarget.getScreenCTM();
    if (matrix === null) return;
    const { x: px, y: py } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    const [nearest] = candidates
      .filter((one) => one.fits)
      .map((one) => ({ one, distance: Math.hypot(at(one).cx - px, at(one).cy - py) }))
      .sort((a, b) => a.distance - b.distance);
    if (nearest !== undefined && nearest.distance < REACH) onChoose(nearest.one);
  };
  const ordered = [...candidates].sort((a, b) => Number(a === chosen) - Number(b === chosen)); // the chosen one on top
  return (
    // the list beside the chart does the same for keys
    <svg class="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true" onClick={choose}>
      <line x1={LEFT} y1={HEIGHT - BOTTOM} x2={WIDTH} y2={HEIGHT - BOTTOM} class="axis" />
      <line x1={LEFT} y1={0} x2={LEFT} y2={HEIGHT - BOTTOM} class="axis" />
      <text x={LEFT + PAD} y={HEIGHT - BOTTOM + 16}>
        {bytes(Math.min(...takes))}
      </text>
      <text x={WIDTH - 4} y={HEIGHT - BOTTOM + 16} text-anchor="end">
        {bytes(Math.max(...takes))}
      </text>
      <text x={(LEFT + WIDTH) / 2} y={HEIGHT - 4} text-anchor="middle">
        memory
      </text>
      <text x={LEFT - 6} y={HEIGHT - BOTTOM - PAD} text-anchor="end">
        {Math.min(...loses).toPrecision(2)}
      </text>
      <text x={LEFT - 6} y={PAD + 4} text-anchor="end">
        {Math.max(...loses).toPrecision(2)}
      </text>
      <text x={14} y={(HEIGHT - BOTTOM) / 2} text-anchor="middle" transform={`rotate(-90 14 ${(HEIGHT - BOTTOM) / 2})`}>
        expected loss, nats
      </text>
      <polyline class="front" points={front.map((one) => `${at(one).cx},${at(one).cy}`).join(" ")} />
      {ordered.map((one) => (
        <circle key={`${one.kind} ${one.parameters}`} {...at(one)} r={one === chosen ? 8 : 5} class={classOf(one)}>
          <title>{`${describeCandidate(one)}${one.fits ? "" : ", does not fit"}`}</title>
        </circle>
      ))}
    </svg>
  );
}
