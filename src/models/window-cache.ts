/** llama.cpp's cache of a window has room for a batch besides, in steps of so many positions. */
const [BATCH, STEP] = [512, 256];

/** The positions that llama.cpp's cache of keys and values has for a layer with a window; Infinity for none. */
export const windowCells = (window: number | undefined): number =>
  window === undefined ? Number.POSITIVE_INFINITY : STEP * Math.ceil((window + BATCH) / STEP);
