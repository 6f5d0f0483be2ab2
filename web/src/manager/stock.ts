import type { Dose, Vaccination } from "../../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import type { Lot } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";

export type Unusable = "isWithdrawn" | "tooOld" | "otherVaccine" | "isEmpty";

/** 08 and 8 are one code. */
export const sameCode = (a: string, b: string) => Number(a) === Number(b);

/**
 * Why a lot cannot be used for a booking; null: it can. At the counter a dose that is set aside for another booking may
 * be given (`takesReserved`); the manager's choice of a lot needs a free one.
 */
export function unusable(lot: Lot, booking: Vaccination, takesReserved: boolean): Unusable | null {
  if (lot.withdrawn) return "isWithdrawn";
  if (booking.date < lot.productionDate || booking.date > lot.expiryDate) return "tooOld";
  if (booking.requestedVaccineCode && !sameCode(booking.requestedVaccineCode, lot.vaccineCode)) return "otherVaccine";
  const own = booking.dose?.lotId === lot.lotId;
  if (lot.free < 1 && !own && !(takesReserved && lot.reserved > 0)) return "isEmpty";
  return null;
}

export type Change =
  | { effect: "givenEffect" | "freeEffect" | "reservedEffect"; lot: string; before: number; after: number }
  | { effect: "lastBookingChanges" };

/** What becomes of the lots when a dose of `lot` is given to who has `dose` set aside. */
export function onAdminister(lot: Lot, dose: Dose | undefined, lots: readonly Lot[]): Change[] {
  const given: Change = {
    effect: "givenEffect",
    lot: lot.lotNumber,
    before: lot.administered,
    after: lot.administered + 1,
  };
  if (dose?.lotId === lot.lotId)
    return [{ effect: "reservedEffect", lot: lot.lotNumber, before: lot.reserved, after: lot.reserved - 1 }, given];
  const taken: Change =
    lot.free > 0
      ? { effect: "freeEffect", lot: lot.lotNumber, before: lot.free, after: lot.free - 1 }
      : { effect: "lastBookingChanges" };
  return [taken, given, ...onReturn(dose, lots)];
}

/** What becomes of the lots when a booking gets a dose of `lot`. */
export function onAssign(lot: Lot, dose: Dose | undefined, lots: readonly Lot[]): Change[] {
  if (dose?.lotId === lot.lotId) return [];
  return [
    { effect: "freeEffect", lot: lot.lotNumber, before: lot.free, after: lot.free - 1 },
    { effect: "reservedEffect", lot: lot.lotNumber, before: lot.reserved, after: lot.reserved + 1 },
    ...onReturn(dose, lots),
  ];
}

/** What becomes of the lots when a dose goes back. */
export function onReturn(dose: Dose | undefined, lots: readonly Lot[]): Change[] {
  const lot = lots.find((one) => one.lotId === dose?.lotId);
  return lot && !lot.withdrawn
    ? [{ effect: "freeEffect", lot: lot.lotNumber, before: lot.free, after: lot.free + 1 }]
    : [];
}

const SEPARATOR = "\u001d";
// GS1 application identifiers of fixed length that stand on vaccines: number of the article, dates, and so on.
const FIXED: Record<string, number> = {
  "00": 18,
  "01": 14,
  "02": 14,
  "11": 6,
  "12": 6,
  "13": 6,
  "15": 6,
  "16": 6,
  "17": 6,
  "20": 2,
};

/** The lot number of what a scanner has read: a GS1 code's, or the text as it is. */
export function lotNumberOf(scan: string): string {
  const text = scan.trim();
  const written = /\(10\)([^(\u001d]+)/.exec(text);
  if (written?.[1]) return written[1].trim();
  let rest = text.replace(/^\]\w\d/, "");
  if (rest === text && !/^01\d{14}/.test(rest)) return text;
  while (rest) {
    if (rest.startsWith(SEPARATOR)) {
      rest = rest.slice(1);
      continue;
    }
    const ai = rest.slice(0, 2);
    const fixed = FIXED[ai];
    if (fixed !== undefined) {
      rest = rest.slice(2 + fixed);
      continue;
    }
    const end = rest.indexOf(SEPARATOR);
    const value = rest.slice(2, end < 0 ? undefined : end);
    if (ai === "10") return value;
    if (end < 0) return text;
    rest = rest.slice(end + 1);
  }
  return text;
}
