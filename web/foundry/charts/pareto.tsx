import type { Candidate } from "../api.js";
import { bytes, count, percent } from "../format.js";

/** A function from values to positions along an axis of this length. */
function scale(values: readonly number[], length: number, isLogarithmic = false) {
  const map = (value: number) => (isLogarithmic ? Math.log(Math.max(value, Number.MIN_VALUE)) : value);
  const mapped = values.map(map);
  const [low, high] = [Math.min(...mapped), Math.max(...mapped)];
  return (value: number): number => (high === low ? length / 2 : ((map(value) - low) / (high - low)) * length);
}

export interface CandidatesProps {
  readonly candidates: readonly Candidate[];
  readonly chosen: Candidate | null;
  readonly onChoose: (candidate: Candidate) => void;
}

/** How near to a point a click must be: about a finger's width on a phone. */
const CLICK_RADIUS = 40;
const distanceTo = ({ cx, cy }: { cx: number; cy: number }, x: number, y: number): number => Math.hypot(cx - x, cy - y);

/** Size of the drawing, and the space for the labels and around the points. */
const [WIDTH, HEIGHT, LEFT, BOTTOM, PAD] = [560, 300, 56, 40, 14];

/** The candidates for which no smaller one has a lower expected loss, smallest first. */
export function lowerEnvelope(candidates: readonly Candidate[]): Candidate[] {
  let least = Number.POSITIVE_INFINITY;
  return [...candidates]
    .sort((a, b) => a.memory.totalBytes - b.memory.totalBytes || a.expectedLoss - b.expectedLoss)
    .filter(({ expectedLoss }) => {
      const isLower = expectedLoss < least;
      if (isLower) least = expectedLoss;
      return isLower;
    });
}

/** A candidate's size and type. */
export const candidateName = ({ parameters, share, kind }: Candidate): string =>
  `${count(parameters)} parameters (${percent(share)}) as ${kind}`;

/** A candidate with its memory, speed and expected loss, in a line. */
export const describeCandidate = (candidate: Candidate): string => {
  const { memory, tokensPerSecond, expectedLoss } = candidate;
  return `${candidateName(candidate)}: ${bytes(memory.totalBytes)}, ${Math.round(tokensPerSecond)} tokens/s, ${expectedLoss.toPrecision(2)} nats`;
};

/** The axes, with the ends of their ranges. */
function Axes({ memory, losses }: { memory: readonly number[]; losses: readonly number[] }) {
  return (
    <>
      <line x1={LEFT} y1={HEIGHT - BOTTOM} x2={WIDTH} y2={HEIGHT - BOTTOM} class="axis" />
      <line x1={LEFT} y1={0} x2={LEFT} y2={HEIGHT - BOTTOM} class="axis" />
      <text x={LEFT + PAD} y={HEIGHT - BOTTOM + 16}>
        {bytes(Math.min(...memory))}
      </text>
      <text x={WIDTH - 4} y={HEIGHT - BOTTOM + 16} text-anchor="end">
        {bytes(Math.max(...memory))}
      </text>
      <text x={(LEFT + WIDTH) / 2} y={HEIGHT - 4} text-anchor="middle">
        memory
      </text>
      <text x={LEFT - 6} y={HEIGHT - BOTTOM - PAD} text-anchor="end">
        {Math.min(...losses).toPrecision(2)}
      </text>
      <text x={LEFT - 6} y={PAD + 4} text-anchor="end">
        {Math.max(...losses).toPrecision(2)}
      </text>
      <text x={14} y={(HEIGHT - BOTTOM) / 2} text-anchor="middle" transform={`rotate(-90 14 ${(HEIGHT - BOTTOM) / 2})`}>
        expected loss, nats
      </text>
    </>
  );
}

/** Candidates by memory and expected loss. A click chooses one; the keyboard uses the list beside the chart. */
export function Pareto({ candidates, chosen, onChoose }: CandidatesProps) {
  if (candidates.length === 0) return null;
  const [right, top] = [WIDTH - LEFT - 2 * PAD, HEIGHT - BOTTOM - 2 * PAD];
  const memory = candidates.map(({ memory: { totalBytes } }) => totalBytes);
  const losses = candidates.map(({ expectedLoss }) => expectedLoss);
  const [x, y] = [scale(memory, right, true), scale(losses, top)];
  const centre = (candidate: Candidate) => ({
    cx: LEFT + PAD + x(candidate.memory.totalBytes),
    cy: HEIGHT - BOTTOM - PAD - y(candidate.expectedLoss),
  });
  const front = lowerEnvelope(candidates.filter(({ fits }) => fits));
  const classOf = (candidate: Candidate): string => {
    if (candidate === chosen) return "point chosen";
    if (!candidate.fits) return "point unfit";
    return front.includes(candidate) ? "point on-front" : "point";
  };
  const choose = (event: MouseEvent & { readonly currentTarget: SVGSVGElement }) => {
    const matrix = event.currentTarget.getScreenCTM();
    if (matrix === null) return;
    const { x: px, y: py } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    const [nearest] = candidates
      .filter(({ fits }) => fits)
      .map((candidate) => ({ candidate, distance: distanceTo(centre(candidate), px, py) }))
      .sort((a, b) => a.distance - b.distance);
    if (nearest !== undefined && nearest.distance < CLICK_RADIUS) onChoose(nearest.candidate);
  };
  const ordered = [...candidates].sort((a, b) => Number(a === chosen) - Number(b === chosen)); // the chosen one on top
  return (
    // the list beside the chart serves keyboards and screen readers
    <svg class="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true" onClick={choose}>
      <Axes memory={memory} losses={losses} />
      <polyline
        class="front"
        points={front.map((candidate) => `${centre(candidate).cx},${centre(candidate).cy}`).join(" ")}
      />
      {ordered.map((candidate) => (
        <circle
          key={`${candidate.kind} ${candidate.parameters}`}
          {...centre(candidate)}
          r={candidate === chosen ? 8 : 5}
          class={classOf(candidate)}
        >
          <title>{`${describeCandidate(candidate)}${candidate.fits ? "" : ", does not fit"}`}</title>
        </circle>
      ))}
    </svg>
  );
}
