export const ROLES = ["viewer", "user", "admin"] as const;
/** A viewer looks, a user also makes and deletes, an admin also gives keys and quotas, of any tenant. */
export type Role = (typeof ROLES)[number];
