import type { MetricsRecord } from "../distill/index.js";
import { formatCount } from "../system/format.js";
import { escapeHtml } from "../system/html.js";
import type { PlanSummary } from "./plan-summary.js";

/** A bar of each size before and after. @param keptLayers the original's layers that stay; all by default */
export function cutChart(plan: PlanSummary, keptLayers?: readonly number[]): string {
  const rows = Object.entries(plan).flatMap(([axis, sizes]) => cutRows(axis, sizes, keptLayers));
  const height = rows.length * 26;
  const bars = rows.map(({ axis, from, to }, i) => {
    const y = i * 26 + 4;
    const change = from === to ? `${from}` : `${from} to ${to} (-${(100 * (1 - to / from)).toFixed(0)} %)`;
    return [
      `<text x="0" y="${y + 12}">${escapeHtml(axis)}</text>`,
      `<rect class="before" x="80" y="${y}" width="420" height="16"/>`,
      `<rect class="after" x="80" y="${y}" width="${(from === 0 ? 0 : (420 * to) / from).toFixed(1)}" height="16"/>`,
      `<text x="510" y="${y + 12}">${change}</text>`,
    ].join("");
  });
  return `<svg viewBox="0 0 660 ${height}" role="img" aria-label="Sizes before and after">${bars.join("")}</svg>`;
}

/** One row for an axis, or one for each of the layers that stay if they differ. */
function cutRows(
  axis: string,
  { from, to }: PlanSummary[string],
  keptLayers?: readonly number[],
): { axis: string; from: number; to: number }[] {
  const [before, after] = [[from].flat(), [to].flat()];
  const at = (sizes: readonly number[], i: number): number => sizes[sizes.length === 1 ? 0 : i] ?? 0;
  if (before.length === 1 && after.length === 1) return [{ axis, from: at(before, 0), to: at(after, 0) }];
  const layers = keptLayers ?? Array.from({ length: Math.max(before.length, after.length) }, (_, i) => i);
  return layers.map((layer, i) => ({ axis: `${axis} ${layer}`, from: at(before, layer), to: at(after, i) }));
}

const MAX_POINTS = 600;

/** Two decimals, or as many as tell multiples of a small step apart. */
const decimalsFor = (step: number): number => Math.min(8, Math.max(2, 1 - Math.floor(Math.log10(step))));

/** The training loss over tokens, with validation losses as points. */
export function lossChart(metrics: readonly MetricsRecord[]): string {
  const stride = Math.ceil(metrics.length / MAX_POINTS);
  const points = metrics.filter((_, i) => i % stride === 0 || i === metrics.length - 1);
  const validation = metrics.flatMap(({ tokens, validationLoss }) =>
    validationLoss === undefined ? [] : [{ tokens, loss: validationLoss }],
  );
  const top = Math.max(...points.map(({ loss }) => loss), ...validation.map(({ loss }) => loss)) || 1;
  const last = metrics.at(-1)?.tokens ?? 1;
  const x = (tokens: number) => (50 + (590 * tokens) / last).toFixed(1);
  const y = (loss: number) => (230 - (210 * loss) / top).toFixed(1);
  const decimals = decimalsFor(top / 4);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const tickY = y(share * top);
    return `<line class="grid" x1="50" x2="640" y1="${tickY}" y2="${tickY}"/><text x="4" y="${Number(tickY) + 4}">${(share * top).toFixed(decimals)}</text>`;
  });
  const line = points.map(({ tokens, loss }) => `${x(tokens)},${y(loss)}`).join(" ");
  const dots = validation.map(
    ({ tokens, loss }) => `<circle class="validation" r="3" cx="${x(tokens)}" cy="${y(loss)}"/>`,
  );
  return `<svg viewBox="0 0 660 260" role="img" aria-label="Training loss over tokens">${ticks.join("")}<polyline class="loss" points="${line}"/>${dots.join("")}<text x="50" y="252">0</text><text x="640" y="252" text-anchor="end">${formatCount(last)} tokens</text><text x="330" y="252" text-anchor="middle">line: training loss; dots: validation loss</text></svg>`;
}
