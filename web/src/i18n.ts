import type { Refusal } from "./refusal.ts";
import {
  because,
  errorReason,
  event,
  manufacturers,
  movementKind,
  reservationStatus,
  texts,
  vaccinationStatus,
  vaccines,
  writeOffReason,
} from "./texts.ts";
import { Value } from "./value.ts";

export type Language = "ko" | "en";
type Pair = readonly [ko: string, en: string];
type Texts = typeof texts;
export type Key = keyof Texts;
type Args<K extends Key> = Texts[K][0] extends (...args: infer A) => string ? A : [];

const CHOSEN = "language";

function preferred(): Language {
  const chosen = localStorage.getItem(CHOSEN);
  if (chosen === "ko" || chosen === "en") return chosen;
  for (const language of navigator.languages) {
    if (language.startsWith("ko")) return "ko";
    if (language.startsWith("en")) return "en";
  }
  return "en";
}

/** The language of the page: the one chosen here, else the first of the browser's that there is. */
export const language = new Value<Language>(typeof window === "undefined" ? "en" : preferred());

export function choose(next: Language): void {
  localStorage.setItem(CHOSEN, next);
  language.set(next);
}

const pick = (pair: Pair) => pair[language.get() === "ko" ? 0 : 1];

export function t<K extends Key>(key: K, ...args: Args<K>): string {
  const text = texts[key][language.get() === "ko" ? 0 : 1] as string | ((...args: unknown[]) => string);
  return typeof text === "function" ? text(...args) : text;
}

// A newer version may send names that this page does not know; they are shown as they are.
function named(table: Record<string, Pair>, name: string): string {
  const pair = Object.hasOwn(table, name) ? table[name] : undefined;
  return pair ? pick(pair) : name;
}

/** The name of an enum's value without the enum's prefix; the number of one that is not known. */
export function nameOf(values: Record<number, string>, value: number): string {
  return values[value] ?? String(value);
}

// A newer version's status has no name here, only a number, which tells a customer nothing.
export const statusName = (name: string) =>
  named(mapped(reservationStatus, 0), name in reservationStatus ? name : "UNSPECIFIED");
export const statusMeaning = (name: string) =>
  name in reservationStatus ? named(mapped(reservationStatus, 1), name) : "";
export const vaccinationName = (name: string) => named(vaccinationStatus, name);
export const eventName = (name: string) => named(event, name);
export const reasonText = (name: string) => named(because, name);
export const movementName = (name: string) => named(movementKind, name);
export const writeOffName = (name: string) => named(writeOffReason, name);
export const manufacturerName = (code: string) => named(manufacturers, code);
export const vaccineName = (code: string) =>
  code ? (vaccines[code] ? pick(vaccines[code]) : `CVX ${code}`) : t("anyVaccineShort");

function mapped(table: Record<string, readonly [Pair, Pair]>, index: 0 | 1): Record<string, Pair> {
  return Object.fromEntries(Object.entries(table).map(([name, pairs]) => [name, pairs[index]]));
}

/** Why something was refused, in plain words. */
export function explain(refused: Refusal): string {
  const said = refused.said[language.get()];
  if (said) return said;
  if (refused.reason && Object.hasOwn(errorReason, refused.reason)) return named(errorReason, refused.reason);
  if (refused.lost) return t("lostMessage");
  return refused.message || t("failed");
}

const formats = new Map<string, Intl.DateTimeFormat>();

function format(options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = language.get() + JSON.stringify(options);
  let made = formats.get(key);
  if (!made) {
    made = new Intl.DateTimeFormat(language.get() === "ko" ? "ko-KR" : "en-GB", options);
    formats.set(key, made);
  }
  return made;
}

// A calendar day has no zone: it is put into UTC and formatted there, so that it is the same day everywhere.
const midnight = (day: string) => new Date(`${day}T00:00:00Z`);

/** A calendar day, for example "Mon, 4 January 2027". */
export function longDay(day: string): string {
  if (!day) return "";
  const weekday = language.get() === "ko" ? "long" : "short";
  return format({ weekday, day: "numeric", month: "long", year: "numeric", timeZone: "UTC" }).format(midnight(day));
}

/** A calendar day that nobody has to keep free, for example "4 January 2027". */
export function plainDay(day: string): string {
  if (!day) return "";
  return format({ day: "numeric", month: "long", year: "numeric", timeZone: "UTC" }).format(midnight(day));
}

/** A calendar day without its year, for example "Mon, 4 Jan". */
export function shortDay(day: string): string {
  return format({ weekday: "short", day: "numeric", month: "short", timeZone: "UTC" }).format(midnight(day));
}

export function month(day: string): string {
  return format({ month: "long", year: "numeric", timeZone: "UTC" }).format(midnight(day));
}

/** A moment in a zone: time and day. */
export function moment(seconds: bigint | number | undefined, zone: string): string {
  if (seconds === undefined) return "";
  const date = new Date(Number(seconds) * 1000);
  return format({
    day: "numeric",
    month: "short",
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
    timeZone: zone || "UTC",
  }).format(date);
}

/** A time of day, with seconds, on this device's clock, or in a zone. */
export function clock(milliseconds: number, zone?: string): string {
  const options: Intl.DateTimeFormatOptions = {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
  };
  return format(zone ? { ...options, timeZone: zone } : options).format(new Date(milliseconds));
}

/** Hours and minutes in a zone. */
export function hour(seconds: bigint | number, zone: string): string {
  return format({ hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: zone || "UTC" }).format(
    new Date(Number(seconds) * 1000),
  );
}

export function number(n: number | bigint): string {
  return n.toLocaleString(language.get());
}
