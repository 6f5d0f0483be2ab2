import { create } from "@bufbuild/protobuf";
import { type MyReservation, MyReservationSchema } from "../../gen/vaccination/mypage/v1/my_reservation_pb.js";
import { type Reservation, ReservationStatus } from "../../gen/vaccination/reservation/v1/reservation_pb.js";

/**
 * Whether the screen's data know of an answer already. Below CANCEL_REQUESTED a status follows the dose and may go up
 * and down, so that a reservation need only be there; from there on statuses grow.
 */
export function includes(told: MyReservation | undefined, answered: Reservation): boolean {
  if (!told) return false;
  return answered.status < ReservationStatus.CANCEL_REQUESTED || told.status >= answered.status;
}

/** What to show: what the stream told last, but never less than what was answered. */
export function shown(told: Iterable<MyReservation>, answered: readonly Reservation[]): MyReservation[] {
  const all = new Map([...told].map((one) => [one.reservationId, one]));
  for (const one of answered) {
    const before = all.get(one.reservationId);
    if (includes(before, one)) continue;
    all.set(one.reservationId, before ? { ...before, status: one.status } : from(one));
  }
  return [...all.values()].sort((a, b) => decided(b, answered) - decided(a, answered));
}

function from(one: Reservation): MyReservation {
  return create(MyReservationSchema, {
    reservationId: one.reservationId,
    hospitalId: one.hospitalId,
    hospitalName: one.hospitalName,
    date: one.date,
    timeZone: one.timeZone,
    status: one.status,
    rejectionReason: one.rejectionReason,
    requestedVaccineCode: one.vaccineCode,
  });
}

// The first thing that happened to a reservation is approval's decision.
function decided(one: MyReservation, answered: readonly Reservation[]): number {
  const time = one.timeline[0]?.time;
  if (time) return Number(time.seconds) + time.nanos / 1e9;
  for (const other of answered) {
    if (other.reservationId === one.reservationId) return Number(other.decideTime?.seconds ?? 0n);
  }
  return 0;
}

/** Whether there is something to come: a place, a dose, or a cancellation that is under way. */
export function isCurrent(one: MyReservation): boolean {
  return [ReservationStatus.APPROVED, ReservationStatus.COMPLETED, ReservationStatus.CANCEL_REQUESTED].includes(
    one.status,
  );
}

/** Whether the customer can cancel or move it; the service decides in the end. */
export function isHeld(one: MyReservation, today: string): boolean {
  return [ReservationStatus.APPROVED, ReservationStatus.COMPLETED].includes(one.status) && one.date >= today;
}
