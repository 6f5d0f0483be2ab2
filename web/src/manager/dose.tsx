import { useState } from "preact/hooks";
import { CounterService } from "../../gen/vaccination/vaccinemgmt/v1/counter_service_pb.js";
import type { Lot } from "../../gen/vaccination/vaccinemgmt/v1/lot_pb.js";
import type { Vaccination } from "../../gen/vaccination/vaccinemgmt/v1/vaccination_pb.js";
import { VaccinemgmtService } from "../../gen/vaccination/vaccinemgmt/v1/vaccinemgmt_service_pb.js";
import { perform } from "../doing.ts";
import type { Loaded } from "../hooks.ts";
import { plainDay, t, vaccineName } from "../i18n.ts";
import { Act } from "../ui/act.tsx";
import { Field, Input, Problem, Read } from "../ui/parts.tsx";
import { effectsOf } from "./effects.ts";
import { lotNumberOf, onAdminister, onAssign, unusable } from "./stock.ts";

interface Props {
  booking: Vaccination;
  lots: Loaded<Lot[]>;
  onDone: (one: Vaccination | undefined) => void;
  onClose: () => void;
}

const label = (lot: Lot) => `${lot.lotNumber} · ${vaccineName(lot.vaccineCode)} · ${plainDay(lot.expiryDate)}`;

/** A dose was given: the one that is set aside, or one of a lot that is scanned or chosen. */
export function Administer({ booking, lots: { data: lots = [], at, error, reload }, onDone, onClose }: Props) {
  const own = lots.find((lot) => lot.lotId === booking.dose?.lotId);
  const [other, setOther] = useState(!booking.dose);
  const [scan, setScan] = useState("");
  const [picked, setPicked] = useState("");
  const usable = lots.filter((lot) => unusable(lot, booking, true) === null && lot.lotId !== own?.lotId);
  const typed = lotNumberOf(scan);
  const scanned = typed ? lots.find((lot) => lot.lotNumber.toLowerCase() === typed.toLowerCase()) : undefined;
  const lot = other ? (typed ? scanned : usable.find((one) => one.lotId === picked)) : own;
  const why = lot ? unusable(lot, booking, true) : null;
  const wrong = typed && !scanned && at ? t("noSuchLot", typed) : why ? `${t("lotUnusable")}: ${t(why)}` : undefined;
  const title = `${booking.customerId}: ${t("administerTitle")}`;
  return (
    <Act
      title={title}
      label={t("administer")}
      effects={lot && !why ? effectsOf(onAdminister(lot, booking.dose, lots)) : []}
      run={() =>
        perform(
          CounterService.method.administer,
          { reservationId: booking.reservationId, lotId: other ? (lot?.lotId ?? "") : "" },
          title,
        )
      }
      onDone={(response) => onDone(response.vaccination)}
      onClose={onClose}
    >
      {error && <Problem refused={error} title={t("failedLoad")} onAgain={reload} />}
      <fieldset class="choices">
        <legend class="unseen">{t("doseColumn")}</legend>
        {booking.dose && (
          <label class="choice">
            <input type="radio" name="which" checked={!other} onChange={() => setOther(false)} />
            <span>
              <strong>{t("setAside")}</strong>
              <span class="soft">
                {vaccineName(booking.dose.vaccineCode)} · {t("lot")} {booking.dose.lotNumber} · {t("expires")}{" "}
                {plainDay(booking.dose.expiryDate)}
              </span>
            </span>
          </label>
        )}
        <label class="choice">
          <input type="radio" name="which" checked={other} onChange={() => setOther(true)} />
          <strong>{t("otherLot")}</strong>
        </label>
      </fieldset>
      {other && (
        <div class="form">
          <Input
            label={t("lotNumber")}
            hint={t("scan")}
            error={wrong}
            autocomplete="off"
            value={scan}
            onText={setScan}
          />
          <Field label={t("chooseLot")}>
            {(id) => (
              <select
                id={id}
                value={typed ? (scanned?.lotId ?? "") : picked}
                onChange={(event) => {
                  setScan("");
                  setPicked(event.currentTarget.value);
                }}
              >
                <option value="">–</option>
                {usable.map((one) => (
                  <option key={one.lotId} value={one.lotId}>
                    {label(one)}
                  </option>
                ))}
              </select>
            )}
          </Field>
        </div>
      )}
    </Act>
  );
}

/** Sets a dose of a chosen lot aside. */
export function AssignLot({ booking, lots, onDone, onClose }: Props) {
  const all = lots.data ?? [];
  const usable = all.filter((lot) => unusable(lot, booking, false) === null && lot.lotId !== booking.dose?.lotId);
  const [picked, setPicked] = useState("");
  const lot = usable.find((one) => one.lotId === picked) ?? usable[0];
  const title = `${booking.customerId}: ${t("assignTitle")}`;
  return (
    <Act
      title={title}
      label={t("assign")}
      effects={lot ? effectsOf(onAssign(lot, booking.dose, all)) : []}
      run={() =>
        perform(
          VaccinemgmtService.method.assignLot,
          { reservationId: booking.reservationId, lotId: lot?.lotId ?? "" },
          title,
        )
      }
      onDone={(response) => onDone(response.vaccination)}
      onClose={onClose}
    >
      {booking.dose && (
        <p class="soft">
          {t("setAside")}: {vaccineName(booking.dose.vaccineCode)} · {booking.dose.lotNumber}
        </p>
      )}
      <Read from={lots}>
        {() =>
          usable.length ? (
            <fieldset class="choices">
              <legend class="unseen">{t("chooseLot")}</legend>
              {usable.map((one) => (
                <label key={one.lotId} class="choice">
                  <input type="radio" name="lot" checked={one === lot} onChange={() => setPicked(one.lotId)} />
                  <span>
                    <strong>{one.lotNumber}</strong>
                    <span class="soft">
                      {vaccineName(one.vaccineCode)} · {t("expires")} {plainDay(one.expiryDate)} · {t("free")}{" "}
                      {one.free}
                    </span>
                  </span>
                </label>
              ))}
            </fieldset>
          ) : (
            <p class="notice wait">{t("noLotFits")}</p>
          )
        }
      </Read>
    </Act>
  );
}
