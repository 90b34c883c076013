import { expect } from "vitest";

/** A completion with the log-probabilities of its tokens (OpenAI's form, `logprobs: 20`). */
export interface ScoredText {
  readonly text: string;
  readonly logprobs: {
    readonly tokens: readonly string[];
    /** Of the most probable tokens in each place. */
    readonly top_logprobs: readonly Readonly<Record<string, number>>[];
  };
}

/**
 * How much a probability may change with the number of tokens that llama.cpp computes at once, and with the kind of attention: on
 * processors that multiply in bf16 and with keys and values in f16, some thousandths.
 */
const NOISE = 0.02;
/** The model's end token, which a text that ended does not show. */
const END = "<|end|>";

type Distribution = ReadonlyMap<string, number>;

const distribution = (top: Readonly<Record<string, number>> | undefined): Distribution =>
  new Map(
    Object.entries(top ?? {})
      .map(([token, logprob]) => [token, Math.exp(logprob)] as const)
      .sort((a, b) => b[1] - a[1]),
  );

/** The random numbers between 0 and 1 that draw a token: llama.cpp lays out tokens by falling probability. */
function interval(tokens: Distribution, wanted: string): readonly [low: number, high: number] {
  let low = 0;
  for (const [token, probability] of tokens) {
    if (token === wanted) return [low, low + probability];
    low += probability;
  }
  return [low, 1];
}

/**
 * Expects that two runs wrote the same text, as far as rounding lets them: each token from the same distribution, up to a place where
 * another token is as probable (of texts of the most probable tokens) or the same random number lies on the edge between two.
 * @returns whether they are the same to their ends
 */
export function expectSame(one: ScoredText, other: ScoredText, kind: "most probable" | "drawn"): boolean {
  const [a, b] = [one.logprobs, other.logprobs];
  const length = Math.max(a.tokens.length, b.tokens.length);
  for (let i = 0; i < length; i++) {
    const [first, second] = [a, b].map(({ top_logprobs: top }) => distribution(top[i])) as [Distribution, Distribution];
    const [token, otherToken] = [a.tokens[i] ?? END, b.tokens[i] ?? END];
    if (first.size > 0 && second.size > 0)
      for (const [name, probability] of first) {
        const difference = Math.abs(probability - (second.get(name) ?? 0));
        expect(difference, `probability of ${JSON.stringify(name)} in place ${i}`).toBeLessThan(NOISE);
      }
    if (token === otherToken) continue;
    const known = first.size > 0 ? first : second;
    const where = `${JSON.stringify(token)} and ${JSON.stringify(otherToken)} in place ${i}`;
    if (kind === "most probable") {
      const gap = Math.abs((known.get(token) ?? 0) - (known.get(otherToken) ?? 0));
      expect(gap, where).toBeLessThan(NOISE);
    } else {
      const [[low, high], [otherLow, otherHigh]] = [interval(known, token), interval(known, otherToken)];
      expect(Math.max(low, otherLow) - Math.min(high, otherHigh), where).toBeLessThan(NOISE);
    }
    return false;
  }
  expect(one.text).toBe(other.text);
  return true;
}
