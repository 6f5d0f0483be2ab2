import { create, fromJson, toJson, type JsonValue } from "@bufbuild/protobuf";
import type { MyReservation } from "../../gen/vaccination/mypage/v1/my_reservation_pb.js";
import {
  CancelReservationRequestSchema,
  CreateReservationRequestSchema,
  MoveReservationRequestSchema,
} from "../../gen/vaccination/reservation/v1/reservation_service_pb.js";
import {
  type Reservation,
  ReservationSchema,
  ReservationStatus,
} from "../../gen/vaccination/reservation/v1/reservation_pb.js";
import { mypage, NO_LIMIT, reservations, whileSignedIn } from "../api.ts";
import { type Answer, type Ask, Asks } from "../asks.ts";
import { browser } from "../browser.ts";
import { type Connection, Following, sleep } from "../follow.ts";
import type { Refusal } from "../refusal.ts";
import { Value } from "../value.ts";
import { includes, shown } from "./merge.ts";

/** A tab that nobody looks at does not keep a connection for ever. */
const UNSEEN = 5 * 60_000;
/** A device that slept may have lost its connection without noticing. */
const ASLEEP = 30_000;

export type Kind = "create" | "move" | "cancel";

async function send(ask: Ask): Promise<Reservation> {
  const message = ask.request;
  switch (ask.kind as Kind) {
    case "create":
      return one(await reservations.createReservation(fromJson(CreateReservationRequestSchema, message)));
    case "move":
      return one(await reservations.moveReservation(fromJson(MoveReservationRequestSchema, message)));
    case "cancel":
      return one(await reservations.cancelReservation(fromJson(CancelReservationRequestSchema, message)));
  }
}

function one({ reservation }: { reservation?: Reservation | undefined }): Reservation {
  if (!reservation) throw new Error("an answer without a reservation");
  return reservation;
}

/** The customer's requests that are under way. */
export const asks = new Asks<Reservation>({ storage: sessionStorage, send, ...browser });

/** Whether one of these requests may bring a place: another is not asked for meanwhile. */
export const isBooking = (pending: readonly Ask[]) => pending.some((ask) => ask.kind !== "cancel");

/** The answer to the last request, until it was read. */
export const lastAnswer = new Value<Answer<Reservation> | null>(null);

export interface Mine {
  /** Newest decision first; undefined before the first message. */
  all?: readonly MyReservation[];
  connection: Connection;
  why?: Refusal;
}

export const mine = new Value<Mine>({ connection: "connecting" });

let owner = "";
let following: Following<{ reservations: MyReservation[] }> | null = null;
const told = new Map<string, MyReservation>();
const answered = new Map<string, Reservation>();

function show(change: Partial<Mine> = {}): void {
  const before = mine.get();
  const known = before.all !== undefined || told.size > 0 || change.all !== undefined;
  const all = known || answered.size ? shown(told.values(), [...answered.values()]) : undefined;
  mine.set({ ...before, ...change, ...(all ? { all } : {}) });
}

// What was answered is kept in the tab's storage until the stream shows it, so that it is there after a reload, too.
function keepAnswered(): void {
  const kept = [...answered.values()].map((each) => toJson(ReservationSchema, each));
  if (kept.length) sessionStorage.setItem(`answered ${owner}`, JSON.stringify(kept));
  else sessionStorage.removeItem(`answered ${owner}`);
}

function take(reservations_: readonly MyReservation[]): void {
  for (const each of reservations_) {
    told.set(each.reservationId, each);
    const answer = answered.get(each.reservationId);
    if (answer && includes(each, answer)) answered.delete(each.reservationId);
  }
  keepAnswered();
  show({ all: [] });
}

asks.onAnswer = (answer) => {
  if ("answer" in answer) {
    const reservation = answer.answer;
    if (!includes(told.get(reservation.reservationId), reservation)) {
      answered.set(reservation.reservationId, reservation);
      keepAnswered();
    }
    if (answer.ask.kind === "move" && reservation.status !== ReservationStatus.REJECTED) {
      // The answer says so by itself: the place before has gone with the same commit.
      const { reservationId = "" } = answer.ask.request as { reservationId?: string };
      const before = told.get(reservationId);
      if (before && before.status < ReservationStatus.MOVED) {
        const { hospitalId, hospitalName, date, timeZone } = before;
        const status = ReservationStatus.MOVED;
        const moved = create(ReservationSchema, { reservationId, hospitalId, hospitalName, date, timeZone, status });
        answered.set(reservationId, moved);
      }
      keepAnswered();
    }
    show();
  }
  lastAnswer.set(answer);
};

/** Begins to follow this person's reservations, and goes on with what they had asked for. */
export function begin(subject: string): void {
  if (owner === subject) return;
  owner = subject;
  told.clear();
  answered.clear();
  mine.set({ connection: "connecting" });
  for (const kept of JSON.parse(sessionStorage.getItem(`answered ${owner}`) ?? "[]") as JsonValue[]) {
    const reservation = fromJson(ReservationSchema, kept);
    answered.set(reservation.reservationId, reservation);
  }
  asks.resume(subject);
  follow();
}

function follow(): void {
  following?.stop();
  following = new Following(
    (signal) => whileSignedIn((inner) => mypage.watchMyReservations({}, { ...NO_LIMIT, signal: inner }), signal),
    (message) => take(message.reservations),
    (connection, why) => {
      const { why: _, ...before } = mine.get();
      mine.set({ ...before, connection, ...(why ? { why } : {}) });
    },
    { random: Math.random, sleep },
  );
}

addEventListener("online", () => {
  asks.hurry();
  following?.reopen();
});
addEventListener("offline", () => following?.reopen());

let unseen = 0;
let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(unseen);
  if (document.visibilityState === "hidden") {
    hidden = Date.now();
    unseen = window.setTimeout(() => {
      following?.stop();
      following = null;
    }, UNSEEN);
  } else if (!following) {
    if (owner) follow();
  } else if (Date.now() - hidden > ASLEEP) following.reopen();
});

/** The next earlier reservations that are not on the screen yet; the stream tells only the newest. */
export async function readEarlier(pageToken: string): Promise<string> {
  const page = await mypage.listMyReservations({ pageSize: 100, pageToken });
  const earlier = page.reservations.filter((each) => !told.has(each.reservationId));
  if (!earlier.length && page.nextPageToken) return await readEarlier(page.nextPageToken);
  for (const each of earlier) told.set(each.reservationId, each);
  show();
  return page.nextPageToken;
}

/** Reads one that the stream has not told. */
export async function readOne(reservationId: string): Promise<void> {
  const { reservation } = await mypage.getMyReservation({ reservationId });
  if (reservation && !told.has(reservationId)) take([reservation]);
}

type About = { hospital: string; date: string };

export function book(
  hospitalId: string,
  date: string,
  vaccineCode: string,
  about: About,
): Promise<Answer<Reservation>> {
  const requestId = crypto.randomUUID();
  const message = create(CreateReservationRequestSchema, { requestId, hospitalId, date, vaccineCode });
  return asks.ask({ id: requestId, kind: "create", request: toJson(CreateReservationRequestSchema, message), about });
}

export function move(
  reservationId: string,
  hospitalId: string,
  date: string,
  vaccineCode: string,
  about: About,
): Promise<Answer<Reservation>> {
  const requestId = crypto.randomUUID();
  const message = create(MoveReservationRequestSchema, { requestId, reservationId, hospitalId, date, vaccineCode });
  return asks.ask({ id: requestId, kind: "move", request: toJson(MoveReservationRequestSchema, message), about });
}

export function cancel(reservationId: string, about: About): Promise<Answer<Reservation>> {
  const message = create(CancelReservationRequestSchema, { reservationId });
  return asks.ask({
    id: crypto.randomUUID(),
    kind: "cancel",
    request: toJson(CancelReservationRequestSchema, message),
    about,
  });
}
