import { elementCount } from "../tensor/index.js";
import type { Model } from "./architecture.js";
import { type ParameterSpec, shapeOf } from "./dimensions.js";

/**
 * Divides a model's layers over devices: whole layers, in their order, so that activations cross from one device to the next once. What
 * is before the first layer goes with it, and what is behind the last with that.
 * @param shares of the parameters that each device has room for
 * @returns the number of the device for each parameter
 */
export function placesOf(
  { parameters, sizes, layerCount }: Pick<Model, "parameters" | "sizes" | "layerCount">,
  shares: readonly number[],
): (spec: ParameterSpec) => number {
  const firstOfLayers = parameters.findIndex(({ layer }) => layer !== undefined);
  const layerOf = ({ layer }: ParameterSpec, index: number): number =>
    layer ?? (index < firstOfLayers ? 0 : layerCount - 1);
  const layers = new Map(parameters.map((spec, i) => [spec.name, layerOf(spec, i)]));

  const elements = new Float64Array(layerCount);
  for (const spec of parameters) {
    const layer = layers.get(spec.name) ?? 0;
    elements[layer] = (elements[layer] ?? 0) + elementCount(shapeOf(spec, sizes));
  }
  const total = elements.reduce((sum, count) => sum + count, 0);
  let before = 0;
  const places = Array.from(elements, (count) => {
    const middle = (before + count / 2) / total;
    before += count;
    let end = 0;
    const place = shares.findIndex((share) => {
      end += share;
      return middle < end;
    });
    return place < 0 ? shares.length - 1 : place;
  });
  return ({ name }) => places[layers.get(name) ?? 0] ?? 0;
}
