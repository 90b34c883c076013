/** How a smaller model starts: `refit` mends the cut in closed form, `minitron` cuts by activation sizes and leaves the rest as it is. */
export const START_METHODS = ["refit", "minitron"] as const;
export type StartMethod = (typeof START_METHODS)[number];
