/** Measures of how far the student's distribution is from the teacher's. */
export const DIVERGENCES = ["forward-kl", "reverse-kl", "jensen-shannon", "top-k"] as const;
export type Divergence = (typeof DIVERGENCES)[number];
