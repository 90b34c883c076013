import { formatCount } from "../system/format.js";

/** Runs shorter than this say nothing beforehand, in seconds. */
const WORTH_SAYING = 600;
const HOUR = 3600;
/** Steps that count for the forecast: the first one also builds the graph. */
const STEPS = 2;

const spanOf = (seconds: number): string => {
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.round(minutes / 6) / 10;
  return hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
};

/**
 * Says after a few steps what a long training will take, and how many tokens an hour is good for.
 * @param isWhole whether `--tokens` is what this training takes, not a part of it
 * @returns what is told of each step: the tokens so far, those of the whole run, and the time in seconds
 */
export function forecast(
  what: string,
  note: (text: string) => void,
  isWhole = true,
): (tokens: number, total: number, seconds: number) => void {
  let first: { readonly tokens: number; readonly seconds: number } | undefined;
  let steps = 0;
  return (tokens, total, seconds) => {
    first ??= { tokens, seconds };
    if (steps++ !== STEPS) return;
    const rate = (tokens - first.tokens) / (seconds - first.seconds);
    const left = (total - tokens) / rate;
    if (!(rate > 0) || left < WORTH_SAYING) return;
    const shorter =
      isWhole && left > 1.5 * HOUR ? `; --tokens ${formatCount(rate * HOUR).replace(" ", "")} would take an hour` : "";
    note(`at ${formatCount(rate)} tokens/s ${what} takes about ${spanOf(left)}${shorter}`);
  };
}
