/**
 * How layers to cut are chosen: those of the least Block Influence (arXiv 2403.03853), those whose single absence costs the
 * least loss, or the contiguous run whose absence costs the least (arXiv 2408.11796, section 4.3).
 */
export const DEPTH_METHODS = ["contiguous-loss", "loss", "block-influence"] as const;
export type DepthMethod = (typeof DEPTH_METHODS)[number];
