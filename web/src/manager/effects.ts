import { t } from "../i18n.ts";
import type { Change } from "./stock.ts";

export function effectsOf(changes: readonly Change[]): string[] {
  return changes.map((one) =>
    one.effect === "lastBookingChanges" ? t(one.effect) : t(one.effect, one.lot, one.before, one.after),
  );
}
