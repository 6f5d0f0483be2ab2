import { Code, ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  LocalizedMessageSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.js";

/** Why a call did not do what was asked. */
export interface Refusal {
  code: Code;
  /** The error's domain and reason, for example vaccination.approval and DATE_PASSED; empty when it has none. */
  domain: string;
  reason: string;
  /** The service's words, in English. */
  message: string;
  /** The service's words to people, by language, for example ko. */
  said: Record<string, string>;
  /** Fields that were wrong, with the service's words. */
  fields: { field: string; description: string }[];
  /** Set: the same request is to be repeated after so many milliseconds. */
  retryAfter?: number;
  /** The answer did not arrive, so that nobody knows what became of the request: it is to be repeated as it was. */
  lost: boolean;
}

const LOST = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Aborted]);

export function refusal(thrown: unknown): Refusal {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const made: Refusal = {
    code: error.code,
    domain: info?.domain ?? "",
    reason: info?.reason ?? "",
    message: error.rawMessage,
    said: Object.fromEntries(
      error.findDetails(LocalizedMessageSchema).map((one) => [one.locale.slice(0, 2), one.message]),
    ),
    fields: error.findDetails(BadRequestSchema).flatMap((one) => one.fieldViolations),
    // A connection that fails is a TypeError of fetch; what breaks off in the middle of an answer has no reason either.
    lost: LOST.has(error.code) || error.cause instanceof TypeError || (error.code === Code.Unknown && !info),
  };
  if (retry) {
    const delay = retry.retryDelay;
    made.retryAfter = Number(delay?.seconds ?? 0n) * 1000 + (delay?.nanos ?? 0) / 1e6;
  }
  return made;
}
