import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { HospitalService } from "../gen/vaccination/approval/v1/hospital_service_pb.js";
import { MypageService } from "../gen/vaccination/mypage/v1/mypage_service_pb.js";
import { ReservationService } from "../gen/vaccination/reservation/v1/reservation_service_pb.js";
import type { Session } from "./session.ts";

let session: Session | null = null;

/** Before the first call: whose tokens calls carry. */
export function signedBy(whose: Session): void {
  session = whose;
}

/** Tells the session that a stream ended because its token is no longer valid. */
export async function* whileSignedIn<T>(
  stream: (signal: AbortSignal) => AsyncIterable<T>,
  signal: AbortSignal,
): AsyncIterable<T> {
  const token = await session?.token();
  try {
    yield* stream(signal);
  } catch (error) {
    if (ConnectError.from(error).code === Code.Unauthenticated && token) await session?.refused(token);
    throw error;
  }
}

/** For streams, which have no end. */
export const NO_LIMIT = { timeoutMs: 0 };

const gateway = createGrpcWebTransport({ baseUrl: location.origin, defaultTimeoutMs: 20_000 });

async function token(): Promise<string> {
  if (!session) throw new ConnectError("nobody is signed in", Code.Unauthenticated);
  return await session.token();
}

function carrying(token: string, header: HeadersInit | undefined): Headers {
  const headers = new Headers(header);
  headers.set("authorization", `Bearer ${token}`);
  return headers;
}

/**
 * Every call carries the person's token, and is made once more when the gateway refuses the token. The call's time limit
 * does not include the wait for a token: whoever comes back to an expired session and signs in again loses nothing.
 */
export const transport: Transport = {
  async unary(method, signal, limit, header, ...rest) {
    const first = await token();
    try {
      return await gateway.unary(method, signal, limit, carrying(first, header), ...rest);
    } catch (error) {
      if (ConnectError.from(error).code !== Code.Unauthenticated) throw error;
      await session?.refused(first);
      return await gateway.unary(method, signal, limit, carrying(await token(), header), ...rest);
    }
  },
  // Of a stream, what is sent once more cannot be read twice: who follows it opens it again.
  async stream(method, signal, limit, header, ...rest) {
    return await gateway.stream(method, signal, limit, carrying(await token(), header), ...rest);
  },
};

export const hospitals = createClient(HospitalService, transport);
export const mypage = createClient(MypageService, transport);
export const reservations = createClient(ReservationService, transport);

/** Which page of a listing is asked for. */
export interface Paging {
  pageSize: number;
  pageToken: string;
}

/** All pages of a listing, one after the other; `items` takes out of a page what it lists. */
export async function allPages<P extends { nextPageToken: string }, T>(
  read: (which: Paging) => Promise<P>,
  items: (page: P) => T[],
): Promise<T[]> {
  const all: T[] = [];
  let pageToken = "";
  do {
    const page = await read({ pageSize: 1000, pageToken });
    all.push(...items(page));
    pageToken = page.nextPageToken;
  } while (pageToken);
  return all;
}
