import { expect, it } from "vitest";
import type { MetricsRecord } from "../../src/distill/index.js";
import { cutChart, lossChart } from "../../src/jobs/charts.js";

const chartOf = (losses: readonly number[]) =>
  lossChart(losses.map((loss, i) => ({ step: i + 1, tokens: 100 * (i + 1), loss }) as MetricsRecord));
const ticksOf = (svg: string) => [...svg.matchAll(/<text x="4"[^>]*>([^<]*)</g)].map(([, label]) => label);

it.each([
  [
    [4, 2, 1],
    ["0.00", "1.00", "2.00", "3.00", "4.00"],
  ],
  [
    [0.0004, 0.0001],
    ["0.00000", "0.00010", "0.00020", "0.00030", "0.00040"],
  ],
  [
    [0, 0],
    ["0.00", "0.25", "0.50", "0.75", "1.00"],
  ],
])("losses %j have labels %j beside their chart", (losses, labels) => {
  const svg = chartOf(losses);
  expect(ticksOf(svg)).toEqual(labels);
});

it("every point lies in the chart", () => {
  for (const losses of [[0, 0], [3], [5, 1, 2]]) expect(chartOf(losses)).not.toContain("NaN");
});

it("sizes before and after a cut stand beside the layers that stay, also where there was nothing to cut", () => {
  const plan = { hidden: { from: 64, to: 48 }, ffn: { from: [96, 0, 80], to: [48, 40] }, layers: { from: 3, to: 2 } };
  const svg = cutChart(plan, [0, 2]);
  const rows = [
    ...svg.matchAll(/<text x="0"[^>]*>([^<]*)<.*?class="after"[^>]*width="([^"]*)".*?<text x="510"[^>]*>([^<]*)</g),
  ];
  expect(rows.map(([, axis, width, change]) => [axis, Number(width), change])).toEqual([
    ["hidden", 315, "64 to 48 (-25 %)"],
    ["ffn 0", 210, "96 to 48 (-50 %)"],
    ["ffn 2", 210, "80 to 40 (-50 %)"],
    ["layers", 280, "3 to 2 (-33 %)"],
  ]);
  expect(cutChart({ ffn: { from: [96, 0], to: [48, 0] } })).not.toContain("NaN");
});
