/** A count with a unit: 1.23 M. */
export function count(value: number): string {
  const units: readonly (readonly [number, string])[] = [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "K"],
  ];
  const [size, unit] = units.find(([threshold]) => value >= threshold) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))}${unit === "" ? "" : ` ${unit}`}`;
}

/** Bytes with a binary unit: 1.23 MiB. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${Number((value / 2 ** (10 * power)).toPrecision(3))} ${units[power]}`;
}

/** A duration in words: 12 s, 3 min, 1.5 h. */
export function seconds(value: number): string {
  if (value < 90) return `${Math.round(value)} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** A share as a whole percentage. */
export const percent = (share: number): string => `${Math.round(100 * share)}%`;

const ROLES = ["teacher", "pruned", "student"];

/** Models and files in the order in which a job makes them. */
export const inOrder = <T>(models: Readonly<Record<string, T>>): [string, T][] =>
  Object.entries(models).sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b));
const rank = (role: string): number => (ROLES.includes(role) ? ROLES.indexOf(role) : ROLES.length);
