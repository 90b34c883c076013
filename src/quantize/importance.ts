/** How much each input of each matrix matters: mean squared activation, by parameter name. */
export type Importance = ReadonlyMap<string, Float32Array>;
