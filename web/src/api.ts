import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
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

/** Every call carries the person's token, and is made once more when the token turns out to be expired. */
const authorize: Interceptor = (next) => async (request) => {
  if (!session) throw new ConnectError("nobody is signed in", Code.Unauthenticated);
  const token = await session.token();
  request.header.set("authorization", `Bearer ${token}`);
  try {
    return await next(request);
  } catch (error) {
    // Of a stream, what is sent once more cannot be read twice: who follows it opens it again.
    if (request.stream || ConnectError.from(error).code !== Code.Unauthenticated) throw error;
    await session.refused(token);
    request.header.set("authorization", `Bearer ${await session.token()}`);
    return await next(request);
  }
};

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

export const transport = createGrpcWebTransport({
  baseUrl: location.origin,
  interceptors: [authorize],
  defaultTimeoutMs: 20_000,
});

export const hospitals = createClient(HospitalService, transport);
export const mypage = createClient(MypageService, transport);
export const reservations = createClient(ReservationService, transport);

/** All pages of a listing, one after the other. */
export async function allPages<T>(page: (token: string) => Promise<{ items: T[]; next: string }>): Promise<T[]> {
  const all: T[] = [];
  let token = "";
  do {
    const { items, next } = await page(token);
    all.push(...items);
    token = next;
  } while (token);
  return all;
}
