/**
 * How the layers to cut are chosen: `contiguous-loss`, the contiguous run whose absence costs the least loss (arXiv 2408.11796,
 * section 4.3); `loss`, those whose absence, one at a time, costs the least; `block-influence`, those of the least Block
 * Influence (arXiv 2403.03853).
 */
export const DEPTH_METHODS = ["contiguous-loss", "loss", "block-influence"] as const;
export type DepthMethod = (typeof DEPTH_METHODS)[number];
