export const ROLES = ["viewer", "user", "admin"] as const;
/** A viewer reads; a user also creates and deletes; an admin also manages the keys and quotas of all tenants. */
export type Role = (typeof ROLES)[number];
