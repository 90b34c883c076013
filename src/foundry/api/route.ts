import type { Readable } from "node:stream";
import type { Logger } from "pino";
import { z } from "zod";
import { ApiError } from "../../serve/errors.js";
import type { Database } from "../database.js";
import type { Materials } from "../materials.js";
import type { Playground } from "../playground.js";
import type { Storage } from "../storage.js";
import type { Jobs } from "../store/jobs.js";
import type { Library } from "../store/library.js";
import type { Role } from "../store/roles.js";
import type { Caller, Tenants } from "../store/tenants.js";

/** What the endpoints have to work with. */
export interface FoundryServices {
  readonly db: Database;
  readonly storage: Storage;
  readonly tenants: Tenants;
  readonly library: Library;
  readonly jobs: Jobs;
  readonly materials: Materials;
  readonly playground: Playground;
  readonly logger: Logger;
  /** The most bytes of one upload. */
  readonly maxUploadBytes: number;
  readonly corsOrigins: readonly string[];
  /** Whether only this machine can reach the service: then no keys are needed. */
  readonly isLocal: boolean;
  /** Aborted when the service ends, which ends all event streams. */
  readonly ending: AbortSignal;
}

export interface RouteRequest<Parameters, Query, Body> {
  readonly parameters: Parameters;
  readonly query: Query;
  readonly body: Body;
  readonly caller: Caller;
  /** Aborted when the client leaves. */
  readonly signal: AbortSignal;
  readonly header: (name: string) => string | undefined;
  /** The body as it arrives, for uploads. */
  readonly content: () => Readable;
}

/** An answer that is a file. */
export interface Streamed {
  readonly stream: Readable;
  readonly status?: 200 | 206 | undefined;
  readonly headers: Readonly<Record<string, string>>;
}

/** An answer by server-sent events. */
export interface Events {
  readonly events: AsyncGenerator<{ readonly event: string; readonly id?: string | undefined; readonly data: unknown }>;
}

export interface Route {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** With parameters in braces. */
  readonly path: string;
  readonly tag: string;
  readonly summary: string;
  /** The least role that may call it; no key is needed for `anyone`. */
  readonly needs: Role | "anyone";
  readonly parameters: z.ZodObject;
  readonly query: z.ZodObject;
  /** A JSON schema, or the media type of an upload. */
  readonly body: z.ZodType | { readonly upload: string } | undefined;
  readonly status: 200 | 201 | 202 | 204;
  /** A JSON schema, or the media type of a stream. */
  readonly reply: z.ZodType | { readonly media: string } | undefined;
  answer(request: RouteRequest<never, never, never>, services: FoundryServices): Promise<unknown>;
}

const NOTHING = z.strictObject({});

interface Definition<Parameters extends z.ZodObject, Query extends z.ZodObject, Body extends z.ZodType> {
  readonly needs: Role | "anyone";
  readonly summary: string;
  readonly parameters?: Parameters | undefined;
  readonly query?: Query | undefined;
  readonly body?: Body | { readonly upload: string } | undefined;
  readonly status?: Route["status"] | undefined;
  readonly reply?: Route["reply"] | undefined;
  readonly answer: (
    request: RouteRequest<z.infer<Parameters>, z.infer<Query>, z.infer<Body>>,
    services: FoundryServices,
  ) => Promise<unknown>;
}

/** Defines an endpoint, whose `answer` has the types of its schemas. @param endpoint method and path, `GET /v1/jobs/{id}` */
export function route<
  Parameters extends z.ZodObject = typeof NOTHING,
  Query extends z.ZodObject = typeof NOTHING,
  Body extends z.ZodType = z.ZodUndefined,
>(tag: string, endpoint: `${Route["method"]} /${string}`, definition: Definition<Parameters, Query, Body>): Route {
  const [method, path] = endpoint.split(" ") as [Route["method"], string];
  const { parameters = NOTHING, query = NOTHING, body, status = 200, reply, needs, summary, answer } = definition;
  return {
    method,
    path,
    tag,
    summary,
    needs,
    parameters,
    query,
    body,
    status,
    reply,
    answer: answer as unknown as Route["answer"],
  };
}

export const idParameter = z.strictObject({ id: z.uuid() });

/** The value. @throws ApiError 404 where there is none, or it belongs to another tenant */
export function orNotFound<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new ApiError(404, `there is no such ${what}`);
  return value;
}

/** A time as ISO 8601 text. */
export const time = z.iso.datetime().nullable();
export const listOf = <T extends z.ZodType>(item: T) => z.object({ data: z.array(item) });
