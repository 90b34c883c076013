import { either, type GrammarRules } from "./gbnf.js";

/** Larger bounds are not for grammars: JavaScript writes larger numbers with exponents. */
const MAX_BOUND = 10 ** 21;
/** Digits after the point, of numbers within bounds. */
const MAX_DECIMALS = 20;
/** Values that are listed rather than described. */
const MAX_LISTED = 256;
/** Remainders to keep track of while a number is written. */
const MAX_REMAINDERS = 64;
/** Digits of a number that is a multiple. */
const MAX_DIGITS = 9;

export interface NumberBounds {
  readonly minimum?: number | undefined;
  readonly exclusiveMinimum?: number | undefined;
  readonly maximum?: number | undefined;
  readonly exclusiveMaximum?: number | undefined;
}

/** Whether bounds ask for numbers beyond those that can be written. */
export const isBeyond = ({ minimum, exclusiveMinimum, maximum, exclusiveMaximum }: NumberBounds): boolean =>
  [minimum, exclusiveMinimum].some((bound = 0) => bound >= MAX_BOUND) ||
  [maximum, exclusiveMaximum].some((bound = 0) => bound <= -MAX_BOUND);

/** A body for whole numbers within bounds; undefined where there are none. */
export function integerBody(bounds: NumberBounds): string | undefined {
  const { low, high } = wholeBounds(bounds, 0);
  if (low !== undefined && high !== undefined && low > high) return undefined;
  return integersBetween(low, high);
}

/**
 * A body for numbers within bounds, with one more digit after the point than the bounds have, so that there is a number between any
 * two of them.
 * @returns undefined where there are none, null where a grammar cannot express them
 */
export function numberBody(bounds: NumberBounds): string | undefined | null {
  const limits = Object.values(bounds).filter((bound) => bound !== undefined && Math.abs(bound) < MAX_BOUND);
  const isWhole = limits.every(Number.isInteger);
  const { exclusiveMinimum: above, exclusiveMaximum: below } = bounds;
  if (isWhole && above === undefined && below === undefined) {
    const { low, high } = wholeBounds(bounds, 0);
    return low !== undefined && high !== undefined && low > high ? undefined : numbersBetween(low, high);
  }
  const wanted = Math.max(2, ...limits.map(decimalsOf)) + 1;
  const decimals = Math.min(MAX_DECIMALS, wanted);
  const bodies = Array.from({ length: decimals + 1 }, (_, point) => point).flatMap((point) => {
    const scaled = wholeBounds(bounds, point);
    return isEmpty(scaled) ? [] : [integersBetween(scaled.low, scaled.high, point)];
  });
  if (bodies.length === 0) return wanted > decimals ? null : undefined;
  return either(bodies);
}

/**
 * A body for multiples of a step within bounds.
 * @returns undefined where there are none, null where a grammar cannot express them
 */
export function multiplesBody(step: number, bounds: NumberBounds, rules: GrammarRules): string | undefined | null {
  if (!(step > 0)) return null;
  const values = listedMultiples(step, bounds);
  if (values !== undefined) return values.length === 0 ? undefined : either(values.map((value) => `"${value}"`));
  if (!Number.isInteger(step) || step > MAX_REMAINDERS) return null;
  const { low, high } = wholeBounds(nearBounds(bounds), 0);
  if (high !== undefined || (low !== undefined && (low < 0n || low > BigInt(step)))) return null;
  const positive = remainderRule(step, rules);
  if (low === undefined) return `("0" | "-"? ${positive})`;
  return low === 0n ? `("0" | ${positive})` : positive;
}

/** Bounds without those that no multiple with few digits can break. */
function nearBounds({ minimum, exclusiveMinimum, maximum, exclusiveMaximum }: NumberBounds): NumberBounds {
  const far = 10 ** MAX_DIGITS;
  const low = (bound: number | undefined) => (bound !== undefined && bound > -far ? bound : undefined);
  const high = (bound: number | undefined) => (bound !== undefined && bound < far ? bound : undefined);
  return {
    minimum: low(minimum),
    exclusiveMinimum: low(exclusiveMinimum),
    maximum: high(maximum),
    exclusiveMaximum: high(exclusiveMaximum),
  };
}

/** The multiples within bounds as texts; undefined where they are too many. */
function listedMultiples(step: number, bounds: NumberBounds): string[] | undefined {
  const { minimum, exclusiveMinimum, maximum, exclusiveMaximum } = bounds;
  const lows = [minimum, exclusiveMinimum].filter((bound) => bound !== undefined);
  const highs = [maximum, exclusiveMaximum].filter((bound) => bound !== undefined);
  if (lows.length === 0 || highs.length === 0) return undefined;
  const [first, last] = [Math.ceil(Math.max(...lows) / step), Math.floor(Math.min(...highs) / step)];
  if (last - first > MAX_LISTED) return undefined;
  const decimals = decimalsOf(step);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Number(((first + i) * step).toFixed(decimals)))
    .filter(
      (value) =>
        Number.isInteger(value / step) &&
        lows.every((bound) => value >= bound) &&
        highs.every((bound) => value <= bound) &&
        value !== exclusiveMinimum &&
        value !== exclusiveMaximum,
    )
    .map((value) => `${value === 0 ? 0 : value}`)
    .filter((text) => !text.includes("e"));
}

/** A rule for positive multiples: one rule for each remainder so far and each number of digits that may follow. */
function remainderRule(step: number, rules: GrammarRules): string {
  return rules.once(`multiple${step}`, () => {
    const digits = (from: number, after: readonly (string | undefined)[]) =>
      Array.from({ length: 10 }, (_, digit) => {
        const rest = after[(10 * from + digit) % step];
        return rest === undefined ? undefined : `"${digit}" ${rest}`;
      });
    let after = Array.from({ length: step }, (_, remainder): string | undefined =>
      remainder === 0 ? '""' : undefined,
    );
    for (let left = 1; left < MAX_DIGITS; left++) {
      const next = after;
      after = next.map((_, remainder) => {
        const bodies = digits(remainder, next).filter((body) => body !== undefined);
        if (bodies.length === 0) return undefined;
        return rules.add([...(remainder === 0 ? ['""'] : []), ...bodies].join(" | "));
      });
    }
    return digits(0, after)
      .slice(1)
      .filter((body) => body !== undefined)
      .join(" | ");
  });
}

interface WholeBounds {
  readonly low: bigint | undefined;
  readonly high: bigint | undefined;
}

const isEmpty = ({ low, high }: WholeBounds): boolean => low !== undefined && high !== undefined && low > high;

/** Bounds of a number times a power of ten, as whole numbers. */
function wholeBounds(bounds: NumberBounds, decimals: number): WholeBounds {
  const scaled = (bound: number) => {
    const text = bound.toFixed(Math.min(100, decimalsOf(bound))); // the decimal number that it is written as
    const [whole = "0", fraction = ""] = text.replace("-", "").split(".");
    const kept = fraction.slice(0, decimals).padEnd(decimals, "0");
    const isExact = /^0*$/.test(fraction.slice(decimals));
    const cut = BigInt(`${whole}${kept}`);
    const isNegative = bound < 0;
    const floor = isNegative ? (isExact ? -cut : -cut - 1n) : cut;
    return { floor, ceiling: isExact ? floor : floor + 1n };
  };
  const lows: bigint[] = [];
  const highs: bigint[] = [];
  const { minimum, exclusiveMinimum: above, maximum, exclusiveMaximum: below } = bounds;
  const applies = (bound: number | undefined): bound is number => bound !== undefined && Math.abs(bound) < MAX_BOUND;
  if (applies(minimum)) lows.push(scaled(minimum).ceiling);
  if (applies(maximum)) highs.push(scaled(maximum).floor);
  if (applies(above)) lows.push(scaled(above).floor + 1n);
  if (applies(below)) highs.push(scaled(below).ceiling - 1n);
  const inOrder = (all: readonly bigint[]) => [...all].sort((a, b) => (a < b ? -1 : 1));
  return { low: inOrder(lows).at(-1), high: inOrder(highs)[0] };
}

function decimalsOf(value: number): number {
  const [digits = "", exponent = "0"] = `${value}`.split("e");
  return Math.max(0, (digits.split(".")[1] ?? "").length - Number(exponent));
}

/** A body for whole numbers from low to high, both included, each unbounded where undefined. @param point digits after the point */
function integersBetween(low: bigint | undefined, high: bigint | undefined, point = 0): string {
  const parts: string[] = [];
  if (low === undefined || low < 0n) {
    const [least, most] = [high === undefined || high >= 0n ? 1n : -high, low === undefined ? undefined : -low];
    parts.push(`"-" ${naturalsBetween(least, most, point)}`);
  }
  if (high === undefined || high >= 0n)
    parts.push(naturalsBetween(low === undefined || low < 0n ? 0n : low, high, point));
  return either(parts);
}

function naturalsBetween(low: bigint, high: bigint | undefined, point = 0): string {
  const parts: string[] = [];
  const from = `${low}`.padStart(point + 1, "0");
  if (high === undefined) {
    const free = point === 0 ? "" : ` "." [0-9]{${point}}`;
    const least = from.length - point;
    parts.push(digitsBetween(from, "9".repeat(from.length), point), `[1-9] [0-9]{${least},${least + 14}}${free}`);
    return either(parts);
  }
  const to = `${high}`.padStart(point + 1, "0");
  for (let length = from.length; length <= to.length; length++) {
    const first = length === from.length ? from : `1${"0".repeat(length - 1)}`;
    parts.push(digitsBetween(first, length === to.length ? to : "9".repeat(length), point));
  }
  return either(parts);
}

/** A body for numbers between two of the same number of digits. @param point how many of these come after the point */
function digitsBetween(from: string, to: string, point: number): string {
  const [a, b] = [from[0] ?? "", to[0] ?? ""];
  const digits = (first: string, last: string) => (first === last ? `"${first}"` : `[${first}-${last}]`);
  const [restA, restB] = [from.slice(1), to.slice(1)];
  if (from.length === 1) return digits(a, b);
  const dot = restA.length === point ? '"." ' : "";
  const [zeros, nines] = ["0".repeat(restA.length), "9".repeat(restA.length)];
  const free = dot + freeDigits(restA.length, dot === "" ? point : 0);
  if (restA === zeros && restB === nines) return `${digits(a, b)} ${free}`;
  if (a === b) return `"${a}" ${dot}${digitsBetween(restA, restB, point)}`;
  const parts: string[] = [];
  const [next, before] = [restA === zeros ? a : `${Number(a) + 1}`, restB === nines ? b : `${Number(b) - 1}`];
  if (restA !== zeros) parts.push(`"${a}" ${dot}${digitsBetween(restA, nines, point)}`);
  if (Number(next) <= Number(before)) parts.push(`${digits(next, before)} ${free}`);
  if (restB !== nines) parts.push(`"${b}" ${dot}${digitsBetween(zeros, restB, point)}`);
  return either(parts);
}

function freeDigits(count: number, point: number): string {
  const some = (n: number) => (n === 1 ? "[0-9]" : `[0-9]{${n}}`);
  return point === 0 || point >= count ? some(count) : `${some(count - point)} "." ${some(point)}`;
}

/** A body for numbers between two whole ones, with digits after the point. */
function numbersBetween(low: bigint | undefined, high: bigint | undefined): string {
  const [fraction, zeros] = ['("." [0-9]{1,16})?', '("." "0"{1,16})?'];
  const parts: string[] = [];
  if (low === undefined || low < 0n) {
    const least = high === undefined || high >= 0n ? 0n : -high;
    if (low === undefined) parts.push(`"-" ${naturalsBetween(least, undefined)} ${fraction}`);
    else {
      if (-low - 1n >= least) parts.push(`"-" ${naturalsBetween(least, -low - 1n)} ${fraction}`);
      parts.push(`"-" "${-low}" ${zeros}`);
    }
  }
  if (high === undefined || high >= 0n) {
    const least = low === undefined || low < 0n ? 0n : low;
    if (high === undefined) parts.push(`${naturalsBetween(least, undefined)} ${fraction}`);
    else {
      if (high - 1n >= least) parts.push(`${naturalsBetween(least, high - 1n)} ${fraction}`);
      parts.push(`"${high}" ${zeros}`);
    }
  }
  return either(parts);
}
