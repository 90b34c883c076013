export const PROFILE_NAMES = ["throughput", "latency", "low-memory"] as const;
export type ProfileName = (typeof PROFILE_NAMES)[number];
