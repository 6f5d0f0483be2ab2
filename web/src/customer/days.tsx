import { useMemo, useState } from "preact/hooks";
import type { DayAvailability } from "../../gen/vaccination/approval/v1/hospital_pb.js";
import { hospitals } from "../api.ts";
import { dayIn, plusDays } from "../days.ts";
import { useEvery, useLoaded, useValue } from "../hooks.ts";
import { useHospital } from "../hospitals.ts";
import { longDay, month, shortDay, t, vaccineName } from "../i18n.ts";
import { go } from "../router.ts";
import { AsOf, Button, Dialog, Effects, Empty, Facts, Field, Heading, Link, Read } from "../ui/parts.tsx";
import { asks, book, isBooking, lastAnswer, mine, move } from "./mine.ts";
import { isCurrent } from "./merge.ts";

const WEEKS = 6;
const REFRESHED = 15_000;

/** The days of one hospital that can be booked, or moved to. */
export function Days({ hospitalId, insteadOf }: { hospitalId: string; insteadOf: string }) {
  const hospital = useHospital(hospitalId).data;
  const zone = hospital?.timeZone ?? "Asia/Seoul";
  const { all } = useValue(mine);
  const pending = useValue(asks.pending);
  const before = all?.find((one) => one.reservationId === insteadOf);
  const [vaccine, setVaccine] = useState("");
  const [chosen, setChosen] = useState<string | null>(null);
  const days = useLoaded(
    async (signal) => {
      const firstDate = dayIn(zone, Date.now());
      return await hospitals.listAvailability(
        { hospitalId, firstDate, lastDate: plusDays(firstDate, 7 * WEEKS - 1) },
        { signal },
      );
    },
    [hospitalId, zone],
  );
  useEvery(REFRESHED, () => void days.reload());
  const months = useMemo(() => byMonth(days.data?.days ?? []), [days.data]);
  const name = hospital?.name ?? hospitalId;
  const busy = isBooking(pending);
  const suffix = insteadOf ? `?instead=${insteadOf}` : "";
  const asOf = days.data?.asOfTime;

  const decide = (date: string) => {
    lastAnswer.set(null);
    const about = { hospital: name, date };
    if (insteadOf) void move(insteadOf, hospitalId, date, vaccine, about);
    else void book(hospitalId, date, vaccine, about);
    setChosen(null);
    go("/customer");
  };

  return (
    <>
      <Heading
        before={
          <Link href={`/customer/book${suffix}`} class="back">
            {t("otherHospital")}
          </Link>
        }
      >
        {name}
      </Heading>
      {before && <p class="notice info">{t("moveNow", before.hospitalName, shortDay(before.date))}</p>}
      {(hospital?.vaccineCodes.length ?? 0) > 0 && (
        <Field label={t("vaccine")}>
          {(id) => (
            <select id={id} value={vaccine} onChange={(event) => setVaccine(event.currentTarget.value)}>
              <option value="">{t("anyVaccine")}</option>
              {hospital?.vaccineCodes.map((code) => (
                <option key={code} value={code}>
                  {vaccineName(code)}
                </option>
              ))}
            </select>
          )}
        </Field>
      )}
      <div class="between">
        <h2>{t("chooseDay")}</h2>
        <AsOf at={asOf ? Number(asOf.seconds) * 1000 : undefined} zone={zone} onRefresh={days.reload} />
      </div>
      <Read from={days}>
        {(data) => (
          <>
            {!data.days.length && <Empty title={t("noDays")} />}
            {data.days.length > 0 && data.days.every((one) => one.left < 1) && (
              <p class="notice wait">{t("allFull")}</p>
            )}
            {months.map(([title, its]) => (
              <section key={title}>
                <h3 class="month">{title}</h3>
                <ul class="days">
                  {its.map((one) => (
                    <Day
                      key={one.date}
                      day={one}
                      disabled={busy}
                      yours={
                        all?.some(
                          (other) => isCurrent(other) && other.hospitalId === hospitalId && other.date === one.date,
                        ) ?? false
                      }
                      onChoose={() => setChosen(one.date)}
                    />
                  ))}
                </ul>
              </section>
            ))}
          </>
        )}
      </Read>
      {chosen && (
        <Dialog title={t(insteadOf ? "confirmMove" : "confirmBook")} onClose={() => setChosen(null)}>
          <Facts
            of={[
              [t("hospital"), name],
              [t("day"), longDay(chosen)],
              [t("vaccine"), vaccineName(vaccine)],
            ]}
          />
          {insteadOf && <Effects of={[t("moveEffect")]} />}
          <div class="actions">
            <Button onClick={() => setChosen(null)}>{t("back")}</Button>
            <Button kind="main" onClick={() => decide(chosen)}>
              {t(insteadOf ? "moveIt" : "bookIt")}
            </Button>
          </div>
        </Dialog>
      )}
    </>
  );
}

function Day({
  day,
  disabled,
  yours,
  onChoose,
}: {
  day: DayAvailability;
  disabled: boolean;
  yours: boolean;
  onChoose: () => void;
}) {
  const state = day.calledOff ? t("calledOff") : yours ? t("yourDay") : day.left < 1 ? t("full") : t("left", day.left);
  const label = shortDay(day.date);
  if (day.calledOff || day.left < 1 || yours)
    return (
      <li class="day none" title={day.calledOff || undefined}>
        <span>{label}</span>
        <span class="soft">{state}</span>
      </li>
    );
  return (
    <li>
      <button
        type="button"
        class={`day ${day.left < 10 ? "few" : ""}`}
        disabled={disabled}
        onClick={onChoose}
        data-date={day.date}
      >
        <span>{label}</span>
        <span class="number">{state}</span>
      </button>
    </li>
  );
}

function byMonth(days: readonly DayAvailability[]): [string, DayAvailability[]][] {
  const months = new Map<string, DayAvailability[]>();
  for (const one of days) {
    const title = month(one.date);
    months.set(title, [...(months.get(title) ?? []), one]);
  }
  return [...months];
}
