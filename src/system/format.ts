const threeDigits = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

/** A count with three significant digits: `1.24 B`, `60.0 M`, `512`. */
export const formatCount = (value: number): string => {
  for (const [unit, size] of [
    ["B", 1e9],
    ["M", 1e6],
    ["K", 1e3],
  ] as const)
    if (value >= size) return `${threeDigits(value / size)} ${unit}`;
  return String(Math.round(value));
};

/** A size with three significant digits: `1.50 GiB`, `12 B`. */
export const formatBytes = (bytes: number): string => {
  for (const [unit, size] of [
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ] as const)
    if (bytes >= size) return `${threeDigits(bytes / size)} ${unit}`;
  return `${bytes} B`;
};

/** A time in ISO 8601 for people to read: without the milliseconds that `Date.toISOString` writes. */
export const toTheSecond = (time: string): string => time.replace(/\.\d+Z$/, "Z");
